"""Faults in the middle of a training: `make test-chaos`."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from upath import UPath

from benchmarks.kills import digest, kills, show, small
from mst.data import files
from mst.overrides import override
from mst.training.checkpoints import on_this_machine, saved
from pipelines.cluster import Resources, connect
from pipelines.training.driver import train_driver

pytestmark = pytest.mark.chaos

KILLS = 20


def test_twenty_killed_ranks_change_no_weight(cluster, tmp_path, capsys):
    found = list(kills(KILLS, tmp_path))
    with capsys.disabled():
        show(found)
    assert len(found) == KILLS
    assert all(each.is_equal for each in found)
    assert any(each.moment == "checkpoint" for each in found)
    assert max(each.lost_steps for each in found) <= 8  # checkpoints are four steps apart


@pytest.fixture
def nodes(cluster) -> Iterator[Cluster]:
    """A cluster of two nodes with a core each, in place of the other tests' own."""
    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    connect(num_cpus=2)


def test_a_lost_node_shrinks_the_group_and_changes_no_weight(nodes, scenes, tmp_path):
    config, uri = small(scenes), f"sqlite:///{tmp_path / 'mlflow.db'}"
    undisturbed = UPath(tmp_path) / "undisturbed"
    train_driver(config, undisturbed, Resources(num_workers=2), uri=uri)

    run = UPath(tmp_path) / "shrunk"

    def take_away() -> None:
        while len(saved(run)) < 2:
            time.sleep(0.05)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)

    thief = threading.Thread(target=take_away)
    thief.start()
    trained = train_driver(config, run, Resources(num_workers=2, min_workers=1), uri=uri)
    thief.join()
    points = trained.run.client().get_metric_history(trained.run.run_id, "workers")
    assert [size for size, _ in itertools.groupby(point.value for point in points)] == [2, 1]
    assert digest(run) == digest(undisturbed)


def test_a_store_away_for_half_a_minute_during_an_upload(cluster, remote, away, scenes, tmp_path):
    """The training waits; what others see of its checkpoints is whole at every moment."""
    config, uri = (
        override(small(scenes), {"train.epochs": 1, "train.keep": 9}),
        f"sqlite:///{tmp_path / 'mlflow.db'}",
    )
    undisturbed = UPath(tmp_path) / "undisturbed"
    train_driver(config, undisturbed, Resources(), uri=uri)

    run = remote.parent / "runs" / "away"
    over = threading.Event()
    seen: list[int] = []

    direct = UPath(str(run))  # not through the door

    def look() -> None:
        while not over.is_set():
            for each in saved(direct):
                with on_this_machine(each.path):  # or it raises
                    seen.append(each.step)

    def shut() -> None:
        while len(saved(direct)) < 2 or len(files.names(direct)) == len(saved(direct)):
            pass  # until an upload has begun
        away("killed", 30)

    watchers = [threading.Thread(target=look), threading.Thread(target=shut)]
    for each in watchers:
        each.start()
    start = time.monotonic()
    train_driver(config, run, Resources(), uri=uri)
    over.set()
    for each in watchers:
        each.join()
    assert time.monotonic() - start > 30
    assert digest(run) == digest(undisturbed)
    assert len(set(seen)) > 2

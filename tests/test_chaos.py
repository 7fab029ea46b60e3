"""Faults in the middle of a training: `make test-chaos`, some fifteen minutes."""

import os
import signal
import threading
import time
from pathlib import Path

import boto3
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from upath import UPath

from benchmarks.kills import digest, kills, show, small, workers
from mst.config import override
from mst.data import files
from mst.training.checkpoints import newest, opened, saved
from pipelines.cluster import Resources
from pipelines.train import train_driver

pytestmark = pytest.mark.chaos

KILLS = 20


def test_twenty_killed_ranks_change_no_weight(cluster, tmp_path, capsys):
    found = list(kills(KILLS, tmp_path))
    with capsys.disabled():
        show(found)
    assert len(found) >= KILLS - 2  # a moment may have come too late
    assert all(each.is_equal for each in found)
    assert any(each.moment == "checkpoint" for each in found)
    assert max(each.lost_steps for each in found) <= 8  # checkpoints are four steps apart


def test_a_lost_node_shrinks_the_group_and_changes_no_weight(scenes, tmp_path):
    ray.shutdown()  # of the other tests
    config, uri = small(scenes), f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = override(config, {"data.root": str(scenes)})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        undisturbed = UPath(tmp_path) / "undisturbed"
        train_driver(config, undisturbed, Resources(num_workers=2), uri=uri)

        run = UPath(tmp_path) / "shrunk"
        sizes = set()

        def take_away() -> None:
            while len(saved(run)) < 2:
                time.sleep(0.05)
            sizes.add(len(workers()))
            cluster.remove_node(lost, allow_graceful=False)
            while not (found := newest(run)) or not found.is_finished:
                sizes.add(len(workers()))
                time.sleep(0.2)

        thief = threading.Thread(target=take_away)
        thief.start()
        train_driver(config, run, Resources(num_workers=2, min_workers=1), uri=uri)
        thief.join()
        assert {1, 2} <= sizes
        assert digest(run) == digest(undisturbed)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_store_away_for_half_a_minute_during_an_upload(cluster, remote, away, scenes, tmp_path):
    """The training waits; what others see of its checkpoints is whole at every moment."""
    config, uri = override(small(scenes), {"train.epochs": 1}), f"sqlite:///{tmp_path / 'mlflow.db'}"
    undisturbed = UPath(tmp_path) / "undisturbed"
    train_driver(config, undisturbed, Resources(), uri=uri)

    run = remote.parent / "runs" / "away"
    over = threading.Event()
    seen: list[int] = []

    def look() -> None:
        direct = UPath(str(run))  # not through the door
        while not over.is_set():
            for each in saved(direct):
                with opened(each.path):  # or it raises
                    seen.append(each.step)

    def shut() -> None:
        while not len(saved(UPath(str(run)))) >= 2:
            time.sleep(0.01)
        while files.names(UPath(str(run))) == {each.path.name for each in saved(UPath(str(run)))}:
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
    with opened(newest(run).path) as folder:
        assert (folder / "model.safetensors").read_bytes() == (
            Path(str(newest(undisturbed).path)) / "model.safetensors"
        ).read_bytes()
    assert len(set(seen)) > 2

"""What goes wrong in a training on Ray: it goes on where it can, and says why where it cannot."""

import boto3
import pytest
from mlflow import MlflowClient
from ray.train import WorkerGroupError
from upath import UPath

from mst.errors import ConfigError, DataError, ServerError, TrainingError
from mst.overrides import override
from mst.training.checkpoints import newest, saved
from pipelines.cluster import Resources, connect
from pipelines.training import driver
from pipelines.training.driver import check_request, train_driver
from pipelines.training.tracking import find_run
from tests.conftest import train_here


@pytest.fixture
def config(config):
    return override(config, {"train.choose_by": "iou"})


def test_a_run_in_s3_is_logged_with_its_pictures_and_what_it_was_made_from(cluster, registry, config, s3):
    boto3.client("s3").create_bucket(Bucket="runs")
    folder = UPath("s3://runs/team/here")
    trained = train_here(config, folder, registry)
    assert [each.step for each in saved(folder)] == [2, 4]
    assert str(trained.checkpoint).startswith("s3://runs/team/here/step_0000000")
    run = MlflowClient(registry, registry).get_run(trained.run.run_id)
    assert {"git_commit", "source_sha256", "data_sha256", "command_line", "version.torch"} <= set(
        run.data.tags
    )
    assert {"loss", "lr", "images_per_second", "grad_norm", "val_noc90"} <= set(run.data.metrics)
    assert run.data.metrics["data/images"] == 12
    assert run.data.metrics["data/left_out/crowd"] == 1
    images = MlflowClient(registry, registry).list_artifacts(run.info.run_id, "images")
    assert len([each for each in images if each.path.endswith(".png")]) == 2
    assert newest(folder).run_id == run.info.run_id


def test_an_error_that_would_come_again_ends_the_training_at_once(cluster, registry, config, tmp_path):
    """The loss is no number from the second epoch on; nothing is tried three times."""
    never = {"train.epochs": 20, "train.validate_every": 20}
    config = override(config, {"optim.lr": 1e30, "train.max_bad_steps": 2, **never})
    folder = UPath(tmp_path) / "run"
    with pytest.raises(TrainingError, match=r"no finite loss or gradient; its images: .*train/.*jpg"):
        train_driver(config, folder, Resources(max_failures=3), uri=registry)
    run = find_run(registry, folder)
    assert run.client().get_run(run.run_id).info.status == "FAILED"
    points = run.client().get_metric_history(run.run_id, "loss")
    assert len({point.step for point in points}) == len(points)  # no step was tried twice


def test_fewer_workers_take_the_same_batches(config):
    assert driver.shared_by(config, Resources(4)) == config
    assert driver.shared_by(config, Resources(4, min_workers=2)).train.micro_batches == 4
    given = override(config, {"train.micro_batches": 8})
    assert driver.shared_by(given, Resources(4, min_workers=2)) == given


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(num_workers=4, min_workers=3), "the workers need 3 CPUs, the cluster has 2"),
        (Resources(num_workers=1, min_workers=2), "min-workers 2 are more than num-workers 1"),
        (Resources(use_gpu=True), "the workers need 1 GPUs, the cluster has 0$"),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused(cluster, config, tmp_path, resources, message):
    with pytest.raises(ConfigError, match=message):
        check_request(config, UPath(tmp_path) / "run", resources)


def test_a_cluster_that_grows_counts_as_large_as_it_may_become(cluster, config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pipelines.cluster.state.get_max_resources_from_cluster_config", lambda: {"CPU": 4, "GPU": 2}
    )
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    place = UPath(tmp_path) / "run"
    check_request(config, place, Resources(num_workers=2, use_gpu=True))
    with pytest.raises(ConfigError, match="need 4 GPUs, the cluster has 0, and can grow to 2"):
        check_request(config, place, Resources(num_workers=4, use_gpu=True))


def test_a_place_that_cannot_be_written_is_said_before_any_worker_starts(cluster, config, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="file/run: cannot be written"):
        check_request(config, UPath(tmp_path / "file" / "run"), Resources())


def test_a_worker_that_ray_killed_for_its_memory_names_the_settings():
    died = RuntimeError("OutOfMemoryError: killed due to the node running low on memory")
    cause = driver._cause(WorkerGroupError("failed", {1: died}))
    assert isinstance(cause, TrainingError)
    assert "train.micro_batches" in str(cause)


def test_another_failure_of_a_worker_stays_what_it_is():
    error = WorkerGroupError("failed", {1: RuntimeError("something else")})
    assert driver._cause(error) is error


def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ServerError, match=r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1 .*refused"):
        connect()

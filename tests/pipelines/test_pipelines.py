"""Training, sweeps and the registry on a real Ray cluster and a real MLflow database."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from mlflow import MlflowClient
from upath import UPath

from mst.checkpoint import load_model, load_training_state, save_checkpoint, verify
from mst.command_line import parse
from mst.data.sampling.sampler import Shard
from mst.errors import CheckpointError, ConfigError, DataError, ImageError
from mst.model import MST
from mst.overrides import flatten, override
from mst.training import fit, new_state
from mst.training.checkpoints import newest
from mst.training.resume import read_data
from pipelines import initialize
from pipelines.cluster import Resources
from pipelines.command_line import add_resources, add_settings, config_of
from pipelines.promotion.promote import Request, promote
from pipelines.registry.versions import fetch_checkpoint
from pipelines.storage import PROJECT
from pipelines.training.driver import check_request, train_driver
from pipelines.training.tracking import find_run
from serve.inference.registry import fetch_model, pin
from serve.settings import ServeSettings
from tests.conftest import TINY_MODEL, as_options, train_here


@pytest.fixture
def config(config):
    return override(config, {"train.choose_by": "iou"})


@pytest.fixture
def broken_validation(scenes, tmp_path) -> dict[str, str]:
    """Settings of a data set whose validation images are cut short."""
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    for image in (folder / "val").iterdir():
        image.write_bytes(image.read_bytes()[:2000])
    return {"data.root": str(folder)}


def movement(start, end):
    """How far a training has moved the weights."""
    return torch.cat([(end[name] - start[name]).flatten() for name in start])


def test_two_workers_train_and_everything_is_logged(cluster, registry, config, tmp_path):
    config = override(config, {"model.dropout": 0})
    folder = UPath(tmp_path / "runs") / "both"
    trained = train_driver(config, folder, Resources(num_workers=2), uri=registry)

    assert sorted(each.name for each in folder.iterdir()) == ["step_00000002", "step_00000004"]
    model, stored = load_model(trained.checkpoint)
    assert isinstance(model, MST)
    assert stored == config

    alone, _ = new_state(config, torch.device("cpu"))
    start = {name: value.clone() for name, value in alone.model.state_dict().items()}
    list(fit(config, alone, *read_data(config), Shard()))
    shared = load_training_state(newest(folder).path)["model"]
    one, two = movement(start, alone.model.state_dict()), movement(start, shared)
    assert (one - two).abs().mean() < 0.02 * one.abs().mean()  # not equal: sums are rounded in other orders

    client = MlflowClient(registry, registry)
    run = client.get_run(trained.run.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.k_ratio"] == str(config.model.k_ratio)
    assert set(run.data.params) == set(flatten(config))
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2, 3]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val_noc90")] == [1, 3]
    kept = f"checkpoints/{trained.checkpoint.name}"
    assert {Path(each.path).name for each in client.list_artifacts(run.info.run_id, kept)} == {
        "model.safetensors",
        "config.json",
        "manifest.json",
    }

    with pytest.raises(ConfigError, match="run 'both' is finished"):
        train_driver(config, folder, Resources(), uri=registry)
    with pytest.raises(ConfigError, match=r"other settings \(optim.lr: 0.001 -> 0.5\)"):
        train_driver(override(config, {"optim.lr": 0.5}), folder, Resources(), uri=registry)

    _, outcome = promote(registry, folder, Request(keep=tmp_path / "kept", seen_data=True, force="a test"))
    assert outcome == ("1", True)
    champion = client.get_model_version_by_alias("mst", "champion")
    assert str(champion.version) == "1"
    assert champion.tags["sha256"] == verify(trained.checkpoint)["sha256"]["model.safetensors"]
    fetched, _ = load_model(fetch_checkpoint(registry, "models:/mst@champion", tmp_path / "fetched"))
    for name, value in model.state_dict().items():
        assert torch.equal(fetched.state_dict()[name], value)

    pinned = pin(ServeSettings())  # what a server does
    assert pinned.model == "models:/mst/1"
    served, info = fetch_model(pinned, tmp_path / "served")
    assert (info.name, info.version, info.digest) == ("mst", "1", champion.tags["sha256"])
    assert load_model(served)[1] == config
    client.set_model_version_tag("mst", "1", "sha256", "another")
    with pytest.raises(CheckpointError, match="not those that were registered"):
        fetch_model(pinned, tmp_path / "again")


def test_a_run_goes_on_with_other_settings_where_that_is_allowed(cluster, registry, config, tmp_path):
    config = override(config, {"train.epochs": 1})
    train_here(config, UPath(tmp_path) / "run", registry)
    changed = override(config, {"train.epochs": 2, "optim.lr": 0.002})
    with pytest.raises(ConfigError, match=r"epochs: 1 -> 2\); .*, or go on .* --allow-config-change"):
        train_here(changed, UPath(tmp_path) / "run", registry)
    other_network = override(changed, {"model.k_ratio": 0.5})
    with pytest.raises(ConfigError, match=r"model.k_ratio: .*; give this one another name$"):
        train_here(other_network, UPath(tmp_path) / "run", registry, allow_change=True)
    trained = train_here(changed, UPath(tmp_path) / "run", registry, allow_change=True)
    assert (tmp_path / "run" / "step_00000004").exists()
    run = trained.run.client().get_run(trained.run.run_id)
    rate = "learning rate of step 2: 0.001 -> 0.002"
    changed = f"optim.lr: 0.001 -> 0.002; train.epochs: 1 -> 2; {rate}"
    assert run.data.tags["changed_after_step_2"] == changed
    points = trained.run.client().get_metric_history(trained.run.run_id, "lr")
    assert [point.value for point in points] == [0.001, 0.001, 0.002, 0.002]


def command(config, storage, name):
    """The command line that trains this config in a process of its own."""

    script = [sys.executable, "pipelines/train.py", "--recipe", "demo", "--storage", str(storage)]
    return [*script, "--name", name, *as_options(config)]


def test_a_killed_run_goes_on_under_its_name_to_the_same_weights(cluster, registry, config, tmp_path):
    config = override(config, {"train.epochs": 4, "train.checkpoint_every": 1})
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": registry,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
    }
    killed = subprocess.Popen(command(config, tmp_path, "killed"), cwd=PROJECT, env=environment)
    while not (tmp_path / "killed" / "step_00000003").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "step_00000008").exists()

    resumed = train_driver(config, UPath(tmp_path) / "killed", Resources(), uri=registry)
    undisturbed = train_here(config, UPath(tmp_path) / "undisturbed", registry)
    states = [
        load_training_state(tmp_path / name / "step_00000008")["model"] for name in ("killed", "undisturbed")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    client = MlflowClient(registry, registry)
    steps = [
        [point.step for point in client.get_metric_history(trained.run.run_id, "loss")]
        for trained in (resumed, undisturbed)
    ]
    assert set(steps[0]) == set(steps[1]) == set(range(8))  # one run holds the whole curve
    assert [steps[0].count(step) for step in range(3)] == [1, 1, 1]  # and no step before the checkpoint twice


def test_a_broken_sample_is_found_before_anything_is_trained(
    cluster, registry, config, broken_validation, tmp_path
):
    config, folder = override(config, broken_validation), UPath(tmp_path / "runs") / "broken"
    with pytest.raises(ImageError, match=r"val/.*jpg: broken image"):
        train_here(config, folder, registry)
    run = find_run(registry, folder)
    client = MlflowClient(registry, registry)
    assert client.get_run(run.run_id).info.status == "FAILED"
    assert client.get_metric_history(run.run_id, "loss") == []  # found before anything was trained


def test_weights_of_another_architecture_are_refused_before_any_worker_starts(cluster, config, tmp_path):
    save_checkpoint(tmp_path / "other", MST(TINY_MODEL).state_dict(), config)
    config = override(config, {"train.init": str(tmp_path / "other"), "model.depth": 3})
    with pytest.raises(CheckpointError, match=r"model\.depth 2 there, 3 here"):
        check_request(config, UPath(tmp_path) / "run", Resources())


def test_what_was_trained_but_not_logged_is_finished_by_another_start(cluster, registry, config, tmp_path):
    folder = UPath(tmp_path / "runs") / "late"
    trained = train_here(config, folder, registry)
    client = MlflowClient(registry, registry)
    client.update_run(trained.run.run_id, status="RUNNING")  # as if it had been killed just before
    again = train_here(config, folder, registry)
    assert again == trained
    assert client.get_run(trained.run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"data.root": "/none"}, DataError, "/none is no folder; set data.root"),
        ({"data.val": "coco:none.json"}, DataError, "none.json: no such file"),
        ({"data.val": "cocoa:none.json"}, ConfigError, "'cocoa:none.json' is none of"),
        ({"train.init": "/none"}, CheckpointError, "/none: no such file or folder"),
    ],
)
def test_what_is_missing_is_said_before_any_worker_starts(cluster, config, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        check_request(override(config, changed), UPath(tmp_path) / "run", Resources())


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(num_workers=3), "batch_size 8 is no multiple of 3 workers"),
        (Resources(num_workers=4), "the workers need 4 CPUs, the cluster has 2"),
        (Resources(use_gpu=True), "the workers need 1 GPUs, the cluster has 0"),
        (Resources(use_gpu=True, gpus_per_worker=2), "gpus-per-worker 2 with 1 workers"),
        (Resources(2, use_gpu=True, gpus_per_worker=0.5), "of several, each needs its own"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(cluster, config, tmp_path, resources, message):
    with pytest.raises(ConfigError, match=message):
        check_request(config, tmp_path / "run", resources)


def test_what_a_training_starts_from_can_be_written(monkeypatch, capsys, tmp_path):
    settings = ["--recipe", "demo", "--train.init", str(PROJECT / "checkpoints" / "scenes_tiny")]
    monkeypatch.setattr(sys, "argv", ["initialize.py", *settings, "--out", str(tmp_path / "start")])
    initialize.main()
    assert "random: fusions, neck, head" in capsys.readouterr().out
    model, stored = load_model(tmp_path / "start")
    shipped, _ = load_model(PROJECT / "checkpoints" / "scenes_tiny")
    assert stored.model == shipped.config
    assert torch.equal(model.blocks[0].attn.qkv.weight, shipped.blocks[0].attn.qkv.weight)
    assert not torch.equal(model.head.conv_seg.weight, shipped.head.conv_seg.weight)
    with pytest.raises(ConfigError, match="is there already"):
        initialize.main()


def test_promoting_what_is_not_there_is_refused(registry, tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        promote(registry, UPath(tmp_path), Request())
    with pytest.raises(CheckpointError, match="models:/mst@champion"):
        fetch_checkpoint(registry, "models:/mst@champion", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "demo", "--model.k_rato", "1"], "unknown setting 'model.k_rato'; did you mean"),
        (["--recipe", "demo", "--model.k_ratio=2"], "setting 'model.k_ratio'"),
        (["--recipe", "none"], "unknown recipe 'none'; known are demo"),
        (["--recipe", "demo", "extra"], "unexpected argument 'extra'"),
        (
            ["--recipe", "demo", "--num-worker", "2"],
            "unknown option '--num-worker'; did you mean '--num-workers'",
        ),
    ],
)
def test_a_wrong_command_line_is_named(arguments, message):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_resources(parser)
    add_settings(parser)
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(parse(parser, arguments))


def test_an_error_is_one_line_on_the_terminal():
    script = [sys.executable, "pipelines/train.py", "--recipe", "none"]
    done = subprocess.run(script, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown recipe 'none'")
    assert len(done.stderr.splitlines()) == 1

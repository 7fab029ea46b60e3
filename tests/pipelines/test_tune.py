"""Sweeps on a real Ray cluster: what they find, what they leave behind, and how they go on."""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from mlflow import MlflowClient
from ray import tune
from rich.console import Console
from upath import UPath

from mst.checkpoint import load_model, verify
from mst.command_line import parse
from mst.errors import ConfigError, MSTError
from mst.overrides import override
from mst.training.checkpoints import adopt, best, config_of_run, newest, saved, validated_objects
from pipelines.cluster import Resources
from pipelines.promotion.promote import Request, promote
from pipelines.registry.versions import fetch_checkpoint
from pipelines.storage import PROJECT
from pipelines.sweeping.budget import Limits
from pipelines.sweeping.counting import counted
from pipelines.sweeping.page import write_page
from pipelines.sweeping.plan import planned
from pipelines.sweeping.points import points
from pipelines.sweeping.record import Record, TrialRecord, alone, rank
from pipelines.sweeping.sweep import explore, sweep
from pipelines.sweeping.table import SweepView
from pipelines.sweeping.winner import as_it_is, check_held_out, measure, train_on
from pipelines.training.tracking import find_run, open_run
from pipelines.tune import add_options, plan_of
from tests.conftest import as_options, train_here
from tune_spaces import smoke


@pytest.fixture
def config(config):
    return override(config, {"train.choose_by": "iou"})


@pytest.fixture
def folder(tmp_path):
    made = UPath(tmp_path / "runs") / "sweep"
    made.mkdir(parents=True)
    return made


def quiet(plan):
    return SweepView(plan, Console(file=io.StringIO()), 1)


def swept(plan, folder, registry):
    """All trials of a sweep."""
    parent = find_run(registry, folder) or open_run(registry, folder, plan.config)
    return sweep(plan, folder, parent, Limits(), quiet(plan))[0]


def children(registry, folder):
    """The MLflow runs inside a sweep's, by name: the last of each trial."""
    client = MlflowClient(registry, registry)
    parent = client.get_run(find_run(registry, folder).run_id).info
    ours = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    found = {}
    for run in client.search_runs([parent.experiment_id], ours, order_by=["start_time ASC"]):
        # Only what was killed before its first checkpoint begins anew.
        assert run.info.run_name not in found or found[run.info.run_name].info.status == "KILLED"
        found[run.info.run_name] = run
    return found


def all_cores_are_free():
    for _ in range(100):  # the last workers take a moment to end
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.2)
    return False


def test_a_sweep_ranks_its_trials_and_names_what_failed(cluster, registry, config, folder):
    config = override(config, {"train.max_bad_steps": 1})
    space = {"model.patch_sizes": {"choice": ("4,14", "5")}, "optim.lr": {"choice": (1e-3, 3e-3, 1e30)}}
    plan = planned(config, space, 6, search="grid", resources=Resources(max_failures=0))
    trials = swept(plan, folder, registry)

    assert [each.settings["model.patch_sizes"] for each in trials[3:]] == ["5"] * 3
    assert all("image_size 56 is no multiple of the patch size 5" in each.failure for each in trials[3:])
    assert "no finite loss or gradient" in trials[2].failure
    assert "Lower optim.lr" in trials[2].failure
    constraints = [each.constraints for each in Record(plan, folder)._study.trials]
    assert constraints == [{}, {}] + [{"infeasible": 1.0}] * 4  # TPE would avoid the like
    leader, other = rank(trials, plan.primary)
    assert leader.best(plan.primary).metrics["val_iou"] >= other.best(plan.primary).metrics["val_iou"]
    assert {leader.state, other.state} <= {"finished", "stopped"}
    model, stored = load_model(Path(str(newest(folder / leader.name).path)))
    assert stored.optim.lr == leader.settings["optim.lr"]
    assert model.config == stored.model
    assert not (folder / ".ray").exists()

    runs = children(registry, folder)
    assert set(runs) == {each.name for each in trials[:3]}
    assert {runs[each.name].info.status for each in (leader, other)} <= {"FINISHED", "KILLED"}
    assert runs["trial_002"].info.status == "FAILED"
    request = Request(keep=Path(str(folder / "kept")), seen_data=True, force="a test")
    _, outcome = promote(registry, folder / leader.name, request)
    assert outcome == ("1", True)  # also where it was stopped before it could log
    fetched, _ = load_model(fetch_checkpoint(registry, "models:/mst@champion", Path(str(folder / "fetched"))))
    assert fetched.config == stored.model
    write_page(plan, trials, folder)
    assert all_cores_are_free()


def test_a_point_has_the_mean_of_its_seeds_and_an_interval_over_images(cluster, registry, config, folder):
    space = {"optim.lr": {"choice": (1e-3,)}}
    plan = planned(config, space, 1, search="grid", scheduler="none", seeds=2)
    trials = swept(plan, folder, registry)
    stored = [config_of_run(best(folder / each.name).path) for each in trials]
    assert [each.seed for each in stored] == [config.seed, config.seed + 1]
    (point,) = points(plan, trials, folder)
    assert len(set(point.values)) == 2
    assert point.interval.low < point.mean < point.interval.high
    objects = [validated_objects(best(folder / each.name).path) for each in trials]
    assert len(objects[0]) == config.train.val_objects
    assert [each.name for each in objects[0]] == [each.name for each in objects[1]]


def test_a_sweep_without_a_good_trial_says_why(cluster, registry, config, scenes, folder, tmp_path):
    broken = shutil.copytree(scenes, tmp_path / "scenes")
    for image in (broken / "val").iterdir():
        image.write_bytes(image.read_bytes()[:2000])
    config = override(config, {"data.root": str(broken)})
    plan = planned(config, {"model.k_ratio": {"choice": (0.1,)}}, 1, resources=Resources(max_failures=0))
    with pytest.raises(MSTError, match=r"all 1 trials failed; .*broken image"):
        swept(plan, folder, registry)
    assert [each.info.status for each in children(registry, folder).values()] == ["FAILED"]


def stamps(folder):
    """When each file below a folder was last written."""
    return {path: path.stat().st_mtime_ns for path in Path(str(folder)).rglob("*") if path.is_file()}


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(cluster, registry, config, folder, tmp_path):
    config = override(config, {"train.epochs": 4, "train.keep": 9})
    command = [sys.executable, "pipelines/tune.py", "--storage", str(folder.parent)]
    begin = [
        "--recipe",
        "demo",
        "--name",
        "killed",
        "--space",
        "smoke",
        "--scheduler",
        "none",
        *as_options(config),
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    folder = folder.parent / "killed"
    plan = planned(config, smoke.SPACE, 3)
    first = subprocess.Popen([*command, *begin, "--trials", "3"], cwd=PROJECT, env=environment)

    def states():
        if not (folder / "trials.journal").exists():
            return []
        copy = UPath(tmp_path) / "copy" / "killed"  # the journal is another process's
        copy.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(folder / "trials.journal"), str(copy))
        return Record(plan, copy).trials()

    while not (
        any(each.state == "finished" for each in states())
        and any(each.state == "running" and each.results for each in states())
    ):
        assert first.poll() is None
        time.sleep(0.3)
    first.kill()
    first.wait()
    before = states()
    done = [each for each in before if each.state == "finished"]
    written = {each.name: stamps(folder / each.name) for each in done}
    assert len(done) < 3
    assert all_cores_are_free()

    subprocess.run([*command, "--resume", "killed"], cwd=PROJECT, env=environment, check=True)
    after = states()
    assert [each.state for each in after] == ["finished"] * 3
    assert [each for each in after if each.number in {one.number for one in done}] == done
    assert {each.name: stamps(folder / each.name) for each in done} == written
    assert {each.info.status for each in children(registry, folder).values()} == {"FINISHED"}
    client = MlflowClient(registry, registry)
    for trial in after:  # those that were interrupted went on from their checkpoints
        assert [each.epoch for each in trial.results] == [1, 2, 3, 4]
        run = children(registry, folder)[trial.name].info.run_id
        steps = [point.step for point in client.get_metric_history(run, "loss")]
        assert sorted(set(steps)) == list(range(8))
        assert len(steps) <= 8 + 2  # at most an epoch was taken again
    results = json.loads((folder / "sweep.json").read_text())
    assert len(results["trials"]) == 3
    assert (folder / "sweep.html").exists()
    assert client.get_run(find_run(registry, folder).run_id).info.status == "FINISHED"
    logged = {each.path for each in client.list_artifacts(find_run(registry, folder).run_id)}
    assert {"sweep.html", "sweep.png", "sweep.json", "plan.json"} <= logged


def test_a_population_takes_over_the_weights_of_its_best(cluster, registry, config, folder):
    config = override(config, {"train.epochs": 12, "train.keep": 99})
    plan = planned(config, {"optim.lr": {"loguniform": (1e-5, 1e-3)}}, 2, scheduler="pbt", grace_epochs=3)
    trials = swept(plan, folder, registry)
    assert [each.epochs for each in trials] == [12, 12]
    loser = next(each for each in trials if each.takeovers)
    takeover = loser.takeovers[-1]
    step = f"step_{takeover.epoch * 2:08d}"
    mine, theirs = (Path(str(folder / name / step)) for name in (loser.name, takeover.other))
    weights = [verify(each)["sha256"]["model.safetensors"] for each in (mine, theirs)]
    assert weights[0] == weights[1]
    if takeover.epoch < 12:  # and goes on with other settings, unless the other one had finished
        assert loser.settings["optim.lr"] != load_model(mine)[1].optim.lr
    run = children(registry, folder)[loser.name]  # in its own MLflow run
    assert run.info.status == "FINISHED"
    assert "optim.lr" in run.data.tags[f"changed_after_step_{takeover.epoch * 2}"]
    assert all_cores_are_free()


def test_a_population_has_to_fit(cluster, config, folder):
    plan = planned(config, {"optim.lr": {"loguniform": (1e-5, 1e-3)}}, 3, scheduler="pbt")
    with pytest.raises(ConfigError, match=r"3 of them do not fit .* give --trials 2"):
        explore(plan, folder, Limits(), quiet(plan), print)


def test_a_run_goes_on_from_anothers_checkpoint(cluster, registry, config, folder):
    one, other = folder / "one", folder / "other"
    train_here(config, one, registry)
    shutil.copytree(str(one), str(other))
    first = saved(one)[0]
    adopt(other, first.path)
    (there,) = saved(other)  # its own from there on is gone
    assert (there.step, there.metrics, there.run_id) == (first.step, first.metrics, None)
    verify(Path(str(there.path)))
    changed = override(config, {"optim.layer_decay": 0.5, "optim.weight_decay": 0.3})  # other groups of AdamW
    trained = train_here(changed, other, registry, allow_change=True)
    assert trained.run == find_run(registry, other) != find_run(registry, one)
    state = torch.load(str(newest(other).path / "training_state.pt"), weights_only=True)["optimizer"]
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.0, 0.3}
    assert {int(each["step"]) for each in state["state"].values()} == {4}


def climbing():
    """A trial that needs no training; made here, it travels to Ray's workers as it is."""

    def climb(proposal):
        for epoch in range(proposal["epochs told"] + 1, 5):
            tune.report({"epoch": epoch, "val_iou": proposal["loss.alpha"] * epoch})

    return climb


def test_what_is_counted_is_told_with_each_validation(cluster, config, folder):
    config = override(config, {"train.epochs": 4})
    space = {"loss.alpha": {"uniform": (0.1, 0.9)}}
    plan = planned(config, space, 1, scheduler="none", objectives=["iou", "parameters"])
    (trial,), _ = explore(plan, folder, Limits(), quiet(plan), climbing())
    expected = counted(config.model)
    assert {name: trial.results[-1].metrics[name] for name in expected} == expected


def test_a_limit_ends_a_sweep_that_can_be_resumed(cluster, config, folder):
    config = override(config, {"train.epochs": 4})
    space = {"loss.alpha": {"uniform": (0.1, 0.9)}}
    plan = planned(config, space, 3, scheduler="none", resources=Resources(num_workers=2))
    trials, reached = explore(plan, folder, Limits(samples=6 * 16), quiet(plan), climbing())
    assert reached == "96 samples"
    assert sum(each.validations for each in trials) == 6
    assert [each.state for each in trials] == ["finished", "running"]
    trials, reached = explore(plan, folder, Limits(), quiet(plan), climbing())
    assert reached is None
    assert [each.state for each in trials] == ["finished"] * 3
    assert [each.validations for each in trials] == [4, 4, 4]


def dying(folder):
    """Such a trial, whose process dies after two validations, each time that there is no such file yet."""
    climb = climbing()

    def live(proposal):
        died = folder / tune.get_context().get_trial_id()
        if proposal["epochs told"] or died.exists():
            climb(proposal)
            return
        died.touch()
        for epoch in (1, 2):
            tune.report({"epoch": epoch, "val_iou": 0.5})
        os._exit(1)

    return live


def test_a_trial_whose_process_dies_goes_on(cluster, config, folder, tmp_path):
    config = override(config, {"train.epochs": 4})
    space = {"loss.alpha": {"uniform": (0.1, 0.9)}}
    plan = planned(config, space, 3, scheduler="none")
    view = quiet(plan)
    trials, _ = explore(plan, folder, Limits(), view, dying(tmp_path))
    assert [each.state for each in trials] == ["finished"] * 3
    assert [each.validations for each in trials] == [4, 4, 4]
    assert "trial_000: will be tried again: its process died" in view._console.file.getvalue()
    again = folder.with_name("again")
    again.mkdir()
    once = replace(plan, trials=1, resources=Resources(max_failures=0))
    (trial,), _ = explore(once, again, Limits(), view, lambda _: os._exit(1))
    assert (trial.state, trial.failure) == ("failed", "its process died; was the machine out of memory?")
    assert all_cores_are_free()


def test_trials_of_several_workers(cluster, registry, config, folder):
    plan = planned(config, {"model.k_ratio": {"choice": (0.1, 0.5)}}, 2, search="grid", scheduler="none")
    trials = swept(replace(plan, resources=Resources(num_workers=2)), folder, registry)
    assert [(each.state, each.validations) for each in trials] == [("finished", plan.epochs)] * 2
    assert {each.info.status for each in children(registry, folder).values()} == {"FINISHED"}
    assert all_cores_are_free()


def test_the_winner_is_trained_on_and_tested_on_held_out_data(
    cluster, registry, config, folder, scenes, monkeypatch
):
    plan = planned(config, {"model.k_ratio": {"choice": (0.1, 0.5)}}, 1)
    parent = open_run(registry, folder, config)
    settings = {"model.k_ratio": 0.5}
    trial = TrialRecord(0, settings, "finished")
    train_here(override(config, settings), folder / trial.name, registry, parent=parent.run_id)

    assert as_it_is(trial, folder, parent).checkpoint.parent == folder / trial.name
    trained = train_on(plan, trial, folder, parent, epochs=3)
    assert [each.step for each in saved(folder / "trial_000_full")][-1] == 6
    assert train_on(plan, trial, folder, parent, epochs=3) == trained  # nothing is trained twice
    cosine = replace(plan, config=override(config, {"optim.schedule": "cosine"}))
    anew = TrialRecord(1, settings, "finished")
    train_on(cosine, anew, folder, parent, epochs=3)  # has no checkpoint to go on from, and needs none
    assert [each.step for each in saved(folder / "trial_001_full")] == [2, 4, 6]
    monkeypatch.chdir(scenes)
    with pytest.raises(ConfigError, match="was trained on, or chose the winner"):
        check_held_out(plan, ["coco:annotations/instances_val.json"])
    sources = ["coco:annotations/instances_test.json"]
    check_held_out(plan, sources)
    found = measure(trained, sources, folder, Resources())[0]
    logged = trained.run.client().get_run(trained.run.run_id).data.metrics
    assert logged["test_instances_test_noc90"] == pytest.approx(found.measures["noc90"].value)
    assert set(children(registry, folder)) == {"trial_000", "trial_000_full", "trial_001_full"}


def test_a_sweep_whose_proposals_are_all_refused_ends_at_once(cluster, config, folder):
    plan = planned(config, {"model.patch_sizes": {"choice": ("5", "9")}}, 3)
    trials, _ = explore(plan, folder, Limits(), quiet(plan), climbing())
    assert [each.state for each in trials] == ["failed"] * 3


def test_two_processes_do_not_work_on_one_sweep(folder):
    with alone(folder), pytest.raises(ConfigError, match="another process works on"), alone(folder):
        pass
    with alone(folder):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "new"], "give --recipe and --name"),
        (["--resume", "none"], "holds no sweep to resume"),
        (["--resume", "none", "--space", "all"], "goes on as it began: leave --space away"),
        (["--resume", "none", "--optim.lr", "1"], "leave --optim.lr away"),
        (["--resume", "none", "--num-workers", "2"], "leave --num-workers away"),
        (["--name", "new", "--recipe", "demo", "--space", "all", "--search", "grid"], "a grid needs choices"),
        (["--name", "new", "--recipe", "demo", "--space", "no"], "unknown search space 'no'"),
    ],
)
def test_a_wrong_command_is_refused(folder, arguments, message):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser)
    with pytest.raises(ConfigError, match=message):
        plan_of(parser, parse(parser, arguments), folder / "none")


def test_as_many_trials_run_as_there_is_room_for():
    assert Resources(num_workers=2).fits({"CPU": 5.0}) == 2
    assert (
        Resources(cpus_per_worker=2, use_gpu=True, gpus_per_worker=0.1).fits({"CPU": 99.0, "GPU": 1.0}) == 10
    )
    assert Resources(use_gpu=True, gpus_per_worker=0.5).fits({"CPU": 3.0, "GPU": 2.0}) == 3
    assert Resources(use_gpu=True).fits({"CPU": 3.0}) == 0

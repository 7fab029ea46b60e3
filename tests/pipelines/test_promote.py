"""Promotion end to end: a real registry, real evaluations on Ray, models of known quality."""

import shutil
import sys
from pathlib import Path

import mlflow.artifacts
import pytest
import torch
from mlflow import MlflowClient
from upath import UPath

from mst.checkpoint import WEIGHTS, load_model, read_config, save_checkpoint, verify
from mst.config import Config
from mst.errors import CheckpointError, ConfigError, PredictionError
from mst.evaluation.peers import PEERS
from mst.model import MST
from mst.overrides import override
from pipelines import promote as module
from pipelines.cluster import Resources
from pipelines.promotion import comparison
from pipelines.promotion.promote import Request, promote
from pipelines.promotion.rules import Rules
from pipelines.registry.versions import fetch_checkpoint, registry_client, roll_back
from pipelines.storage import PROJECT
from pipelines.training.tracking import open_run
from serve.inference.registry import fetch_model, pin
from serve.settings import ServeSettings

TRAINED = PROJECT / "checkpoints" / "scenes_tiny"
FEW = {"max_objects": 4, "max_clicks": 2}
RULES = Rules(max_ms=1e6)  # the machine that runs the tests may be busy


@pytest.fixture
def run(registry, scenes, tmp_path):
    """Makes a run whose checkpoint is trained, or of random weights."""

    def make(name: str, *, trained: bool, seed: int = 0, parent: str | None = None) -> UPath:
        folder = UPath(tmp_path / "runs" / name)
        config = override(load_model(TRAINED)[1], {"data.root": str(scenes), "eval.max_clicks": "4"})
        torch.manual_seed(seed)
        model = load_model(TRAINED)[0] if trained else MST(config.model)
        tracked = open_run(registry, folder, config, parent=parent)
        save_checkpoint(
            Path(str(folder / "step_00000001")),
            model.state_dict(),
            config,
            metrics={"val_score": 0.5},
            progress={"step": 1, "is_finished": True, "run_id": tracked.run_id},
        )
        return folder

    return make


@pytest.fixture
def request_of(tmp_path, cluster):
    def make(**changes) -> Request:
        return Request(
            **{
                "resources": Resources(),
                "rules": RULES,
                "keep": tmp_path / "kept",
                "seen_data": True,
                **changes,
            }
        )

    return make


def champion(registry):
    return MlflowClient(registry, registry).get_model_version_by_alias("mst", "champion")


def test_only_the_better_one_becomes_champion(registry, run, request_of, scenes, tmp_path, capsys):
    client = registry_client(registry)
    sweep = open_run(registry, UPath(tmp_path) / "my_sweep", Config(data={"root": str(scenes)}))
    first = promote(registry, run("random", trained=False), request_of(force="a test"))
    assert first[1] == ("1", True)
    tags = champion(registry).tags
    assert (tags["promotion.kind"], tags["promotion.why"].partition(" (")[0]) == ("forced", "a test")

    trained = run("trained", trained=True, parent=sweep.run_id)
    decision, outcome = promote(registry, trained, request_of(dry_run=True))
    assert decision.is_promoted
    assert outcome is None
    assert champion(registry).version == 1

    before = sorted(each.name for each in (tmp_path / "kept").iterdir())
    assert promote(registry, trained, request_of())[1] == ("2", True)
    assert (
        sorted(each.name for each in (tmp_path / "kept").iterdir()) == before
    )  # nothing was evaluated again
    version = champion(registry)
    assert version.tags["promotion.kind"] == "better"
    assert version.tags["promotion.against"] == "1"
    assert version.tags["promotion.why"].startswith("gain: NoC@90 -")
    assert (version.tags["sweep"], version.tags["parent_run"]) == ("my_sweep", sweep.run_id)
    assert version.tags["sha256"] == verify(trained / "step_00000001")["sha256"][WEIGHTS]
    assert version.tags["noc90.instances_val"].endswith("]")
    assert float(version.tags["ms_per_click.instances_val"]) > 0
    wanted = {"git_commit", "source_sha256", "data_sha256", "config_sha256", "machine", "promotion.by"}
    assert wanted <= set(version.tags)
    assert client.get_model_version_by_alias("mst", "previous").version == 1
    assert "- instances_val, 25 objects: NoC@85 " in version.description

    # What an equal and a worse one get
    equal = promote(registry, run("equal", trained=True), request_of())
    assert (equal[1], equal[0].is_promoted) == (None, False)
    worse, outcome = promote(registry, run("worse", trained=False, seed=1), request_of())
    assert outcome is None
    assert "no loss on instances_val" in worse.why()
    refused = client.search_runs(["1"], "tags.`mst.promotion` LIKE 'refused: %'")
    assert {each.info.run_name for each in refused} == {"equal", "worse"}


def test_what_was_promoted_by_force_can_be_rolled_back(registry, run, request_of, tmp_path, capsys):
    client = registry_client(registry)
    promote(registry, run("trained", trained=True), request_of(force="a test", **FEW))
    worse = run("worse", trained=False)
    assert promote(registry, worse, request_of())[1] is None
    assert promote(registry, worse, request_of(force="a test"))[1] == ("2", True)
    tags = champion(registry).tags
    assert tags["promotion.kind"] == "forced"
    assert tags["promotion.why"].startswith("a test (against the rules: gain")
    assert (tags["max_objects"], tags["objects.instances_val"]) == ("4", "4")  # as version 1 was judged

    assert roll_back(client, "it was only a test") == ("3", True)
    tags = champion(registry).tags
    assert tags["promotion.why"] == "back to version 1: it was only a test"
    assert client.get_model_version_by_alias("mst", "previous").version == 2
    fetched = fetch_checkpoint(registry, "models:/mst@champion", tmp_path / "fetched")
    weights = [load_model(folder)[0].head.conv_seg.weight for folder in (TRAINED, fetched)]
    assert torch.equal(*weights)
    with pytest.raises(CheckpointError, match="version 3 is the champion already"):
        roll_back(client, "again", "3")
    assert roll_back(client, "the first one", "1").version == "4"
    capsys.readouterr()
    module.show_log(client)
    log = capsys.readouterr().out.splitlines()
    log, comparisons = log[:8], log[8:]
    assert comparisons[0].startswith("comparison   worse, step 1 with version 1 on instances_val  20")
    assert comparisons[1].startswith("             refused: gain: NoC@90 +")
    assert comparisons[3].startswith("             forced: a test; refused: gain: NoC@90 +")
    assert len(comparisons) == 4
    assert [line.split()[1] for line in log[::2]] == ["1", "2", "3", "4"]
    assert "forced, accepted " in log[2]
    assert "rollback, accepted, previous" in log[4]
    assert "rollback, accepted, champion" in log[6]
    assert "back to version 1: the first one" in log[7]


def test_the_first_one_has_to_be_better_than_what_needs_no_training(registry, run, request_of, monkeypatch):
    decision, outcome = promote(registry, run("random", trained=False, seed=1), request_of())
    assert outcome is None
    assert decision.why().startswith("floor: NoC@90 ")
    findings = [each.finding for each in decision.reasons if each.rule == "floor"]
    assert findings[0].endswith("] beside untrained")
    assert findings[1].endswith(", the best classical peer")
    monkeypatch.setattr(comparison, "PEERS", {"click_disks": PEERS["click_disks"]})  # no match for it
    _, outcome = promote(registry, run("trained", trained=True), request_of())
    assert outcome == ("1", True)
    tags = champion(registry).tags
    assert tags["promotion.kind"] == "first"
    assert tags["promotion.why"].startswith("there was no champion; floor: NoC@90 -")
    assert tags["promotion.why"].endswith("] beside click_disks, the best classical peer")


def test_data_that_chose_or_trained_either_does_not_judge(registry, run, request_of, scenes):
    fair = request_of(seen_data=False)
    with pytest.raises(ConfigError, match=r"the challenger was trained on coco:.*_val.json, or chosen by it"):
        promote(registry, run("one", trained=True), fair)
    trained_on = [f"coco:{scenes}/annotations/instances_train.json"]
    with pytest.raises(ConfigError, match=r"the challenger was trained on coco:.*instances_train.json"):
        promote(registry, run("two", trained=True), request_of(seen_data=False, data=trained_on))
    held_out = [f"coco:{scenes}/annotations/instances_test.json"]
    promote(registry, run("three", trained=True), request_of(seen_data=False, data=held_out, force="a test"))
    unlike = run("four", trained=True)
    config = Path(str(unlike)) / "step_00000001" / "config.json"
    other = override(read_config(config.parent), {"data.val": held_out[0].replace("test", "train")})
    save_checkpoint(
        config.parent,
        load_model(TRAINED)[0].state_dict(),
        override(other, {"data.train": "coco:annotations/instances_test.json"}),
        metrics={"val_score": 0.5},
        progress=verify(config.parent)["progress"],
    )
    chosen_by_champion = [f"coco:{scenes}/annotations/instances_val.json"]
    with pytest.raises(ConfigError, match=r"the champion was trained on coco:.*_val.json, or chosen by it"):
        promote(registry, unlike, request_of(seen_data=False, data=chosen_by_champion))


def test_the_first_version_carries_a_card(registry, run, request_of, tmp_path):
    promote(registry, run("trained", trained=True), request_of(force="a test", **FEW))
    registry_client(registry)
    model = Path(
        mlflow.artifacts.download_artifacts("models:/mst@champion", dst_path=str(tmp_path / "model"))
    )
    card = (model / "card" / "README.md").read_text()
    assert "| instances_val |" in card
    assert (model / "card" / "instances_val.jpg").stat().st_size > 10_000


def test_a_data_set_that_is_gone_is_named(registry, run, request_of, scenes, tmp_path):
    copy = shutil.copytree(scenes, tmp_path / "moved")
    data = [f"coco:{copy}/annotations/instances_test.json"]
    promote(registry, run("one", trained=False), request_of(data=data, force="a test", **FEW))
    shutil.rmtree(copy)
    with pytest.raises(Exception, match=r"moved/annotations/instances_test.json"):
        promote(registry, run("two", trained=True), request_of())
    assert champion(registry).version == 1


def test_a_champion_that_was_tampered_with_is_not_compared_with(registry, run, request_of, tmp_path):
    promote(registry, run("one", trained=False), request_of(force="a test", **FEW))
    files = next((tmp_path / "artifacts").rglob(WEIGHTS))
    other = run("two", trained=True)
    with_other_weights = Path(str(other)) / "step_00000001"
    for name in (WEIGHTS, "manifest.json"):  # whole, but not what was registered
        shutil.copy(with_other_weights / name, files.parent / name)
    message = "not those that were registered"
    with pytest.raises(CheckpointError, match=message):
        promote(registry, other, request_of())
    with pytest.raises(CheckpointError, match=message):
        fetch_checkpoint(registry, "models:/mst@champion", tmp_path / "fetched")
    forced, _ = promote(registry, other, request_of(dry_run=True, force="it is damaged"))
    assert (
        forced.why() == "figures of the champion: there are none; same objects: the champion was not "
        "evaluated on instances_val"
    )
    with pytest.raises(CheckpointError, match=message):
        fetch_model(pin(ServeSettings()), tmp_path / "served")
    files.write_bytes(files.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        fetch_checkpoint(registry, "models:/mst@champion", tmp_path / "again")


def test_a_champion_that_cannot_be_evaluated_is_named_or_done_without(registry, run, request_of, monkeypatch):
    promote(registry, run("one", trained=False), request_of(force="a test", **FEW))

    def evaluate_on(checkpoint, terms, actors):
        if "champion" in checkpoint.parts:
            raise PredictionError("its probabilities are no numbers")
        return comparison.evaluate_on(checkpoint, terms, actors)

    monkeypatch.setattr("pipelines.promotion.promote.evaluate_on", evaluate_on)
    other = run("two", trained=True)
    with pytest.raises(PredictionError, match=r"^the champion: its prob.*; --force REASON promotes without"):
        promote(registry, other, request_of())
    decision, outcome = promote(registry, other, request_of(force="it is broken"))
    assert outcome == ("2", True)
    assert decision.why().startswith("figures of the champion: there are none")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--run", "runs/none"], CheckpointError, "no whole checkpoint"),
        (["--run", "runs/none", "--force", " "], ConfigError, "--force needs a reason"),
        (["--run", "x", "--max-ms", "0"], ConfigError, "--max-ms: .* greater than 0, not 0.0"),
        (["--rollback", "why"], CheckpointError, "no previous champion"),
        (["--run", "x", "--dats", "y"], ConfigError, "did you mean '--data'"),
    ],
)
def test_a_wrong_command_is_named(registry, cluster, monkeypatch, arguments, error, message):
    monkeypatch.setattr(sys, "argv", ["promote.py", *arguments])
    with pytest.raises(error, match=message):
        module.main()

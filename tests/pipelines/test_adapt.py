"""Adapting end to end: a real registry, real training and evaluations on Ray, photos that are scenes."""

import sys
from dataclasses import replace

import pytest
import torch
from mlflow import MlflowClient
from upath import UPath

from mst.checkpoint import read_config, save_checkpoint
from mst.config import Config
from mst.errors import ConfigError
from mst.model import MST
from mst.overrides import override
from mst.training.checkpoints import newest
from pipelines import adapt as module
from pipelines.adaptation import experiment as settings
from pipelines.adaptation.adapt import YOURS, Plan, adapt, alone
from pipelines.adaptation.photos import read_photos
from tests.conftest import LATE_MODEL, TINY_MODEL

SCENES = ["coco:annotations/instances_train.json"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A training of a few steps."""
    monkeypatch.setattr(settings, "_VIEWS_OF_PHOTO", 2)
    monkeypatch.setattr(settings, "_EPOCHS", 2)


@pytest.fixture
def base(scenes, tmp_path):
    """Makes a checkpoint of random weights."""

    def make(model=LATE_MODEL, **more) -> Config:
        torch.manual_seed(0)
        config = override(Config(model=model), {"data.root": str(scenes), "eval.max_clicks": 3})
        save_checkpoint(tmp_path / "base", MST(config.model).state_dict(), config, **more)
        return tmp_path / "base"

    return make


@pytest.fixture
def photos(scenes, monkeypatch):
    monkeypatch.chdir(scenes)
    return read_photos(SCENES, [], UPath(scenes))


@pytest.fixture
def plan(base, scenes, tmp_path):
    reference = {"elsewhere": f"coco:{scenes}/annotations/instances_test.json"}
    return Plan(str(base()), reference, max_objects=4, max_clicks=2, keep=tmp_path / "kept")


def test_it_is_judged_by_photos_that_it_did_not_learn_from_and_elsewhere(
    cluster, registry, photos, plan, tmp_path
):
    folder = UPath(tmp_path / "runs" / "leaves")
    found = adapt(registry, folder, photos, plan, None)
    assert [each.data for each in found] == [YOURS, "elsewhere"]
    assert 1 <= found[0].photos <= len(photos.held_out)
    assert "clicks to 90 % before" in str(found[0])
    config = read_config(newest(folder).path)
    assert config.train.frozen == ("encoder",)
    assert list((tmp_path / "runs" / "leaves.data" / "features").rglob("*.bf16"))

    newest_before = newest(folder).path.stat().st_mtime
    assert adapt(registry, folder, photos, plan, None) == found  # what is done is not done again
    assert newest(folder).path.stat().st_mtime == newest_before
    with pytest.raises(ConfigError, match="of other photos or another model"):
        adapt(registry, folder, replace(photos, train=photos.train[1:]), plan, None)


def test_a_model_whose_clicks_enter_first_is_adapted_too(cluster, registry, photos, base, tmp_path):
    plan = Plan(str(base(TINY_MODEL)), max_objects=2, max_clicks=2, keep=tmp_path / "kept")
    folder = UPath(tmp_path / "runs" / "leaves")
    (yours,) = adapt(registry, folder, photos, plan, None)
    assert yours.data == YOURS
    assert read_config(newest(folder).path).train.frozen == ("backbone", "clicks", "fusions")


def test_one_adapts_at_a_time(registry, photos, plan, tmp_path):
    with alone(tmp_path / "runs"), pytest.raises(ConfigError, match="another adaptation runs in"):
        adapt(registry, UPath(tmp_path / "runs" / "leaves"), photos, plan, None)


def command(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt.py", *words])
    module.main()


def test_the_champion_is_adapted_and_the_gate_decides(
    late_champion, registry, photos, tmp_path, monkeypatch, capsys
):
    words = ["--data", *SCENES, "--storage", str(tmp_path / "runs")]
    words += ["--max-objects", "4", "--max-clicks", "2"]
    capsys.readouterr()
    command(monkeypatch, *words, "--dry-run")
    assert "learns from 8 photos" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "adapted").exists()
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, *words)
    assert end.value.code == module.NOT_PROMOTED  # two clicks on an untrained model reach 90 % nowhere
    said = capsys.readouterr().out
    assert "your photos: 2.00 clicks to 90 % before, 2.00 after" in said
    assert "elsewhere, instances_test" in said
    assert "not promoted: gain" in said
    champion = MlflowClient(registry, registry).get_model_version_by_alias("mst", "champion")
    assert str(champion.version) == "1"


def test_what_cannot_be_judged_is_not_promoted(
    cluster, registry, scenes, base, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(scenes)
    words = ["--data", "coco:annotations/instances_val.json", "--from", str(base())]
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, *words, "--storage", str(tmp_path / "runs"))
    assert end.value.code == module.NOT_PROMOTED
    said = capsys.readouterr().out
    assert "6 photos are needed to hold some out: nothing can be judged or promoted" in said
    assert "not judged, and not promoted" in said
    assert newest(UPath(tmp_path / "runs" / "adapted")).is_finished

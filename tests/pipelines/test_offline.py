"""A training within a time limit, played through on a CPU."""

import json
import sys
import time

import pytest
import torch
from upath import UPath

from mst.checkpoint import load_model, save_checkpoint
from mst.data.compact import compact
from mst.errors import CheckpointError, DataError
from mst.model import MST
from mst.overrides import override
from mst.training import StepReport
from pipelines import offline
from pipelines.training.offline import PART, Load, fitting, pack, train, unpack
from tests.conftest import as_options

CPU = torch.device("cpu")


@pytest.fixture
def limited(scenes, config, tmp_path):
    """An experiment on a packed data root, from packed weights."""
    root, weights = tmp_path / "photos", tmp_path / "weights"
    sources = ["lvis:annotations/lvis_train.json"]
    compact(sources, "coco:annotations/instances_train.json", UPath(scenes), root, processes=1)
    halved = {name: each.half() for name, each in MST(config.model).state_dict().items()}
    save_checkpoint(weights, halved, config)
    settings = {"data.root": str(root), "data.train": "index:train", "data.val": "index:val"}
    settings |= {"train.init": str(weights), "optim.ema": "0.9", "data.copy_paste": "0.5"}
    return override(config, settings | {"train.epochs": "1000", "train.validate_every": "1000"})


def test_training_stops_by_the_clock_and_gives_its_weights_back(limited, tmp_path):
    start = time.monotonic()
    figures = train(limited, CPU, 2, tmp_path / "back", tmp_path / "out")
    assert time.monotonic() - start < 60
    assert figures["training_samples"] >= limited.train.batch_size
    assert figures["images_per_second"] > 0
    assert figures["val_objects"] == 3
    curve = (tmp_path / "out" / "curve.jsonl").read_text().splitlines()
    assert len(curve) * limited.train.batch_size == figures["training_samples"]
    back = list((tmp_path / "back").iterdir())
    assert len(back) <= 7  # as many as a person would copy by hand
    assert all(each.stat().st_size <= PART for each in back)

    checkpoint = unpack(tmp_path / "back", tmp_path / "joined")
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    assert manifest["progress"] == {"step": len(curve)}
    assert manifest["metrics"]["objects"] == 3
    model, config = load_model(checkpoint)
    assert config == limited
    before, _ = load_model(tmp_path / "weights")
    assert any(
        not torch.equal(one, other)
        for one, other in zip(model.parameters(), before.parameters(), strict=True)
    )
    again = override(limited, {"train.init": str(checkpoint)})
    assert train(again, CPU, 0, tmp_path / "back2", tmp_path / "out2")


def test_a_training_is_as_long_as_there_is_time(limited):
    size = limited.train.batch_size
    compiling = [StepReport(0, step, 9, {"images_per_second": size / 30}, False) for step in range(60)]
    steady = [StepReport(0, step, 9, {"images_per_second": size / 2}, False) for step in range(60, 70)]
    longer = fitting(limited, [*compiling, *steady], 1000)
    assert longer.train.steps == 70 + 470  # of two seconds each, and a part for validations
    assert longer.train.epochs == 1
    assert fitting(limited, [*compiling, *steady], -5).train.steps == 71


def test_training_goes_on_at_its_length(limited, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.training.offline._MEASURED", 2)
    monkeypatch.setattr(
        "pipelines.training.offline.fitting", lambda *_: override(limited, {"train.epochs": 3})
    )
    limited = override(limited, {"optim.schedule": "cosine"})
    assert train(limited, CPU, 600, tmp_path / "back", tmp_path / "out")
    curve = [json.loads(line) for line in (tmp_path / "out" / "curve.jsonl").read_text().splitlines()]
    assert [each["step"] for each in curve] == list(range(3 * limited.train.steps_per_epoch))
    assert curve[1]["lr"] > 0.9 * limited.optim.lr  # of a thousand epochs
    assert curve[-1]["lr"] < 0.3 * limited.optim.lr  # of three


def test_parts_that_are_missing_are_noticed(limited, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.training.offline.PART", 100_000)
    train(limited, CPU, 0, tmp_path / "back", tmp_path / "out")
    parts = sorted((tmp_path / "back").glob("checkpoint.tar.*"))
    assert len(parts) > 10  # more than nine: their order is that of numbers
    assert load_model(unpack(tmp_path / "back", tmp_path / "whole"))
    parts[-1].unlink()
    with pytest.raises(CheckpointError, match="parts make no whole checkpoint"):
        unpack(tmp_path / "back", tmp_path / "joined")


def test_what_is_carried_is_packed_once_and_trained_from(scenes, config, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "model", MST(config.model).state_dict(), config)
    (tmp_path / "load" / "site").mkdir(parents=True)  # a package index would be asked for it
    load = Load(["lvis:annotations/lvis_train.json"], "coco:annotations/instances_train.json", UPath(scenes))
    sizes = pack(load, tmp_path / "model", tmp_path / "load", most=10**7)
    assert set(sizes) == {"photos and packages", "weights"}
    written = (tmp_path / "load" / "photos" / "train" / "manifest.json").stat().st_mtime_ns
    with pytest.raises(DataError, match="at most 1000 may be carried; lower --quality or --side"):
        pack(load, tmp_path / "model", tmp_path / "load", most=1000)
    assert (tmp_path / "load" / "photos" / "train" / "manifest.json").stat().st_mtime_ns == written
    command = ["offline.py", "train", "--minutes", "0", "--device", "cpu", "--recipe", "demo"]
    command += ["--folder", str(tmp_path / "load"), "--out", str(tmp_path / "back"), *as_options(config)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [each for each in command if not each.startswith("--data.")])
    offline.main()
    monkeypatch.setattr(sys, "argv", ["offline.py", "unpack", "back", "--out", "joined"])
    offline.main()
    assert load_model(tmp_path / "joined" / "checkpoint")[1].data.root == str(tmp_path / "load" / "photos")

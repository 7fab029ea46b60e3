"""The minutes on a lent GPU, played through without one."""

import json
import time

import pytest
import torch
from upath import UPath

from benchmarks.gpu import until
from benchmarks.harness import row
from benchmarks.lease import PART, fitting, join, train
from mst.checkpoint import load_model, save_checkpoint
from mst.data.compact import compact
from mst.errors import CheckpointError
from mst.model import MST
from mst.overrides import override
from mst.training import StepReport

CPU = torch.device("cpu")


@pytest.fixture
def lent(scenes, config, tmp_path):
    """An experiment on a packed data root, from packed weights."""
    root, weights = tmp_path / "photos", tmp_path / "weights"
    sources = ["lvis:annotations/lvis_train.json"]
    compact(sources, "coco:annotations/instances_train.json", UPath(scenes), root, processes=1)
    halved = {name: each.half() for name, each in MST(config.model).state_dict().items()}
    save_checkpoint(weights, halved, config)
    settings = {"data.root": str(root), "data.train": "index:train", "data.val": "index:val"}
    settings |= {"train.init": str(weights), "optim.ema": "0.9", "data.copy_paste": "0.5"}
    return override(config, settings | {"train.epochs": "1000", "train.validate_every": "1000"})


def test_training_stops_by_the_clock_and_gives_its_weights_back(lent, tmp_path):
    start = time.monotonic()
    figures = {each.name: each.value for each in train(lent, CPU, 2, tmp_path / "back", tmp_path / "out")}
    assert time.monotonic() - start < 60
    assert figures["training_samples"] >= lent.train.batch_size
    assert figures["training"] > 0
    assert figures["val_objects"] == 3
    curve = (tmp_path / "out" / "curve.jsonl").read_text().splitlines()
    assert len(curve) * lent.train.batch_size == figures["training_samples"]
    back = list((tmp_path / "back").iterdir())
    assert len(back) <= 6  # of 8 files that may come back
    assert all(each.stat().st_size <= PART for each in back)

    checkpoint = join(tmp_path / "back", tmp_path / "joined")
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    assert manifest["progress"] == {"step": len(curve)}
    assert manifest["metrics"]["objects"] == 3
    model, config = load_model(checkpoint)
    assert config == lent
    before, _ = load_model(tmp_path / "weights")
    assert any(
        not torch.equal(one, other)
        for one, other in zip(model.parameters(), before.parameters(), strict=True)
    )
    again = override(lent, {"train.init": str(checkpoint)})
    assert list(train(again, CPU, 0, tmp_path / "back2", tmp_path / "out2"))


def test_a_training_is_as_long_as_there_is_time(lent):
    size = lent.train.batch_size
    compiling = [StepReport(0, step, 9, {"images_per_second": size / 30}, False) for step in range(60)]
    steady = [StepReport(0, step, 9, {"images_per_second": size / 2}, False) for step in range(60, 70)]
    longer = fitting(lent, [*compiling, *steady], 1000)
    assert longer.train.steps == 70 + 470  # of two seconds each, and a part for validations
    assert longer.train.epochs == 1
    assert fitting(lent, [*compiling, *steady], -5).train.steps == 71


def test_training_goes_on_at_its_length(lent, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.lease._MEASURED", 2)
    monkeypatch.setattr("benchmarks.lease.fitting", lambda *_: override(lent, {"train.epochs": 3}))
    lent = override(lent, {"optim.schedule": "cosine"})
    assert list(train(lent, CPU, 600, tmp_path / "back", tmp_path / "out"))
    curve = [json.loads(line) for line in (tmp_path / "out" / "curve.jsonl").read_text().splitlines()]
    assert [each["step"] for each in curve] == list(range(3 * lent.train.steps_per_epoch))
    assert curve[1]["lr"] > 0.9 * lent.optim.lr  # of a thousand epochs
    assert curve[-1]["lr"] < 0.3 * lent.optim.lr  # of three


def test_parts_that_are_missing_are_noticed(lent, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.lease.PART", 100_000)
    list(train(lent, CPU, 0, tmp_path / "back", tmp_path / "out"))
    parts = sorted((tmp_path / "back").iterdir())
    assert len(parts) > 10  # more than nine: their order is that of numbers
    assert load_model(join(tmp_path / "back", tmp_path / "whole"))
    parts[-1].unlink()
    with pytest.raises(CheckpointError, match="parts make no whole checkpoint"):
        join(tmp_path / "back", tmp_path / "joined")


def test_measuring_ends_with_the_time():
    figures = (row(str(number), number) for number in range(9))
    assert len(list(until(time.monotonic() - 1, figures))) == 1
    assert len(list(until(time.monotonic() + 60, figures))) == 8

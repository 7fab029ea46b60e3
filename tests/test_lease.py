"""The minutes on a lent GPU, played through without one."""

import json
import time

import pytest
import torch
from upath import UPath

from benchmarks.gpu import until
from benchmarks.harness import row
from benchmarks.lease import PART, join, train
from mst.checkpoint import load_model, save_checkpoint
from mst.data.compact import compact
from mst.errors import CheckpointError
from mst.model import MST
from mst.overrides import override

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

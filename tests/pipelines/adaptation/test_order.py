"""Which photos to annotate next."""

import csv
import sys

import cv2
import numpy as np
import pytest
from upath import UPath

from mst.checkpoint import load_model
from mst.data.sources import read_records
from mst.errors import DataError
from mst.evaluation.metrics import iou
from mst.predictor import Predictor
from mst.robot import next_click
from pipelines import next as module
from pipelines.adaptation.order import Doubt, Doubts, grid, ordered
from pipelines.storage import PROJECT
from tests.conftest import picture, png

TRAINED = PROJECT / "checkpoints" / "scenes_tiny"


@pytest.mark.parametrize(
    ("height", "width", "points"), [(90, 140, 9), (400, 100, 9), (1, 1, 4), (300, 300, 1)]
)
def test_clicks_are_spread_over_the_image(height, width, points):
    clicks = [*grid(height, width, points)]
    assert len(clicks) == points
    assert all(0 <= each.row < height and 0 <= each.col < width and each.is_positive for each in clicks)
    if min(height, width) > 10:
        assert len(set(clicks)) == points
        middle = np.mean([(each.row / height, each.col / width) for each in clicks], 0)
        np.testing.assert_allclose(middle, 0.5, atol=0.06)


def test_the_photo_that_is_doubted_most_comes_first():
    doubts = [Doubt(0.9, 0.9), Doubt(0.2, 0.9), Doubt(0.9, 0.1), Doubt(1, 1)]
    assert ordered(doubts) == [2, 1, 0, 3]
    assert [each.rank for each in doubts[3:]] == [0]


def test_what_the_model_doubts_it_does_worse(scenes):
    """Of twelve scenes, the half that it doubts has masks of a lower IoU after one click."""
    model, config = load_model(TRAINED)
    predictor, asked = Predictor(model, config.eval), Doubts(model, config.eval, points=4)
    found = []
    for record in read_records(["coco:annotations/instances_train.json"], UPath(scenes)):
        image, masks = record.read(), [each.decode() for each in record.objects]
        clicks = [next_click(np.zeros_like(mask), mask) for mask in masks]
        answers = [predictor.predict(image, [click]).mask(config.eval.threshold) for click in clicks]
        right = np.mean([iou(answer, mask) for answer, mask in zip(answers, masks, strict=True)])
        found.append((asked.of(image), right))
    order = ordered([doubt for doubt, _ in found])
    doubted, trusted = ([found[place][1] for place in half] for half in (order[:6], order[6:]))
    assert np.mean(doubted) < np.mean(trusted)


def command(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["next.py", *words])
    module.main()


def test_what_is_annotated_already_is_left_out_and_the_rest_written(tmp_path, monkeypatch, capsys):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(picture(number)))
    mask = np.zeros((90, 140), np.uint8)
    mask[10:40, 20:60] = 255
    cv2.imwrite(str(tmp_path / "masks" / "1.png"), mask)
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    words = ["--images", str(tmp_path / "images"), "--annotated", f"pairs:{tmp_path}", "--points", "2"]
    command(monkeypatch, *words, "--model", str(TRAINED), "--out", str(tmp_path / "next.csv"))
    said = capsys.readouterr()
    assert "broken.png" in said.err
    with (tmp_path / "next.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert sorted(each["image"] for each in rows) == ["0.png", "2.png", "3.png"]
    doubts = [float(each["doubt"]) for each in rows]
    assert doubts == sorted(doubts, reverse=True)
    assert f"the first is {rows[0]['image']}" in said.out

    command(monkeypatch, *words, "--model", str(TRAINED))
    assert capsys.readouterr().out.splitlines()[0] == "image,doubt,expected_iou,agreement"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="0 images, and all of them are annotated"):
        command(monkeypatch, "--images", str(tmp_path / "empty"), "--model", str(TRAINED))

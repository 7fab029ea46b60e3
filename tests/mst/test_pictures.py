from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from mst import pictures
from mst.clicks import EMPTY_SLOT, Click
from mst.config import Config
from mst.data.sampling.sampler import SampleKey
from mst.data.sampling.training_set import Batch, TrainingSet
from mst.data.sources import read_records
from mst.drawing import SCALES, captioned, draw_clicks, draw_tokens, overlay, side_by_side
from mst.evaluation.metrics import iou
from mst.model import MST, Output
from mst.model.fusion import Selection
from mst.overrides import override
from mst.pictures import contact_sheet, strip, training_sheet

CAPTION, PANEL, GAP = 24, 352, 8


def batch_of(config: Config, count: int) -> Batch:
    training_set = TrainingSet(read_records(config.data.train, Path(config.data.root)), config)
    return Batch(*default_collate([training_set[SampleKey(0, i, i)] for i in range(count)]))


def predicted(config: Config, batch: Batch, prev_mask: torch.Tensor) -> Output:
    torch.manual_seed(0)
    return MST(config.model).eval()(batch.image.float() / 255, batch.clicks, prev_mask)


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captions that are drawn."""
    drawn: list[str] = []

    def spy(view, *texts):
        drawn.append("".join(text for text, _ in texts))
        return captioned(view, *texts)

    monkeypatch.setattr(pictures, "captioned", spy)
    return drawn


def test_a_row_of_a_training_sheet_says_what_a_model_made_of_a_sample(config, captions):
    batch = batch_of(override(config, {"data.background": 0.0}), 3)
    prev_mask = batch.mask * torch.tensor([0.0, 0.6, 0.4]).view(3, 1, 1, 1)
    output = predicted(config, batch, prev_mask)
    sheet = training_sheet(batch, batch.clicks, prev_mask, output, 0.49)
    assert sheet.shape == (3 * (CAPTION + PANEL), 5 * PANEL + 4 * GAP, 3)
    assert sheet.dtype == np.uint8
    assert len(captions) == 15
    for sample in range(3):
        count = int((batch.clicks[sample, :, 2] != EMPTY_SLOT).sum())
        prediction = (output.logits[sample, 0].sigmoid() > 0.49).numpy()
        stage = output.stages[-1]
        sizes = [" 4 px", " 14 px"]
        sizes[int(stage.chosen[sample])] += " (chosen)"
        assert captions[5 * sample : 5 * sample + 5] == [
            f"{count} click" + "s" * (count != 1),
            ["no previous mask", "previous mask: IoU 1.00", "no previous mask"][sample],
            f"prediction: IoU {iou(prediction, batch.mask[sample, 0].numpy() > 0.5):.2f}",
            "truth",
            "tokens" + "".join(sizes),
        ]


def test_the_baseline_selects_no_tokens(config):
    config = override(config, {"model.patch_sizes": ""})
    batch = batch_of(config, 1)
    output = predicted(config, batch, torch.zeros_like(batch.mask))
    sheet = training_sheet(batch, batch.clicks, torch.zeros_like(batch.mask), output, 0.49)
    assert sheet.shape == (CAPTION + PANEL, 4 * PANEL + 3 * GAP, 3)


def test_a_large_image_is_made_smaller_for_a_row(config):
    batch = batch_of(override(config, {"model.image_size": 448}), 1)
    output = Output(torch.zeros_like(batch.mask), ())
    sheet = training_sheet(batch, batch.clicks, torch.zeros_like(batch.mask), output, 0.49)
    assert sheet.shape[0] == CAPTION + PANEL


def test_a_sheet_takes_what_training_in_bf16_gives(config):
    batch = batch_of(config, 1)
    output = Output(torch.zeros_like(batch.mask, dtype=torch.bfloat16).requires_grad_(), ())
    assert training_sheet(batch, batch.clicks, torch.zeros_like(batch.mask), output, 0.49).any()


def test_a_sample_without_an_object_says_so(config, captions):
    batch = batch_of(override(config, {"data.background": 1.0}), 1)
    nothing = torch.zeros_like(batch.mask)
    training_sheet(batch, batch.clicks, nothing, Output(nothing - 9, ()), 0.49)
    assert captions[1:] == ["no previous mask", "prediction: IoU 1.00", "truth: no object"]


def test_a_contact_sheet_has_two_columns(config, captions):
    batch = batch_of(config, 3)
    sheet = contact_sheet(batch, batch.clicks, batch.mask)
    assert sheet.shape == (2 * (CAPTION + 320), 6 * 320 + 5 * GAP, 3)
    assert captions.count("object") == 3
    assert not sheet[CAPTION + 320 :, -3 * 320 :].any()


def test_a_strip_keeps_the_size_of_a_large_image():
    image = np.full((400, 500, 3), 200, np.uint8)
    mask = np.zeros((400, 500), bool)
    picture = strip(image, [Click(10, 20, True)], [("image", None), ("mask", mask)])
    assert picture.shape == (CAPTION + 400, 2 * 500 + GAP, 3)
    shown, dimmed = picture[CAPTION:, :500], picture[CAPTION:, 500 + GAP :]
    assert (shown[30:] == 200).all()
    assert not (shown[:30] == 200).all()
    assert (dimmed == 80).all()


# What pictures are made of


def test_a_mask_is_tinted_and_the_rest_dimmed():
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    out = overlay(image, mask)
    assert (out[:5] == 40).all()
    assert out[30, 30].tolist() == [89, 130, 115]
    assert out[10, 30].tolist() == [56, 220, 160]
    assert (image == 100).all()


def test_clicks_lie_where_they_were_made():
    out = draw_clicks(np.zeros((100, 100, 3), np.uint8), [Click(10, 30, True), Click(40, 5, False)], 2.0)
    assert out[21 - 6, 61].argmax() == 1
    assert out[81 - 6, 11].argmax() == 0
    assert not out[:, 80:].any()


@pytest.mark.parametrize("scale", [1.0, 352 / 56, 0.5])
def test_the_patches_of_the_selected_tokens_are_coloured(scale):
    side = round(56 * scale)
    image = np.full((side, side, 3), 100, np.uint8)
    # Of sample 1, 14 px: the token of row 2 and column 1; 28 px: that of row 0 and column 1.
    selections = [
        Selection(28, (2, 2), torch.zeros(2, 4), torch.tensor([[0], [1]]), torch.zeros(2, 1, 8)),
        Selection(14, (4, 4), torch.zeros(2, 16), torch.tensor([[0], [9]]), torch.zeros(2, 1, 8)),
    ]
    out = draw_tokens(image, selections, 1, scale)
    coloured = np.ptp(out.astype(int), axis=2) > 0
    expected = np.zeros_like(coloured)
    expected[: round(28 * scale), round(28 * scale) :] = True
    expected[round(28 * scale) : round(42 * scale), round(14 * scale) : round(28 * scale)] = True
    assert (coloured == expected).all()
    assert tuple(out[0, -1]) == SCALES[0]
    assert tuple(out[round(28 * scale), round(14 * scale)]) == SCALES[1]
    assert (out[~expected] == 40).all()


def test_views_lie_beside_each_other():
    views = [np.full((10, 20, 3), level, np.uint8) for level in (50, 100, 150)]
    assert side_by_side(views).shape == (10, 3 * 20 + 2 * GAP, 3)
    assert (side_by_side(views)[:, -20:] == 150).all()

"""Pictures of a report: objects click by click, methods after one click, and the tokens that guided them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from mst.clicks import Click, Mask
from mst.config import EvalConfig
from mst.data.annotations import Sample
from mst.data.pixels.encode import decode_rle
from mst.data.pixels.images import RGB, resize
from mst.data.sources import SampleSet
from mst.drawing import draw_clicks, draw_tokens, overlay
from mst.errors import NothingToClickError
from mst.evaluation import ObjectRecord
from mst.evaluation.report.evaluation import Evaluation
from mst.model import MST
from mst.model.fusion import Selection
from mst.predictor import next_crop, outputs

TARGET = 90
_SHOWN_CLICKS = (1, 2, 3, 5, 10, 20)
_HEIGHT = 240  # pixels of a panel


class Panel(NamedTuple):
    """A picture and what it shows."""

    image: RGB
    caption: str


class Example(NamedTuple):
    """Panels of one object."""

    title: str
    panels: tuple[Panel, ...]


class Place(NamedTuple):
    """An object by its rank among all of its data set."""

    rank: str
    number: int
    """Of its record, from 0."""


def ranked(evaluation: Evaluation, each: int = 2) -> list[Place]:
    """Choose the best, the median and the worst objects, by NoC and then by mean IoU.

    Args:
        evaluation: of the method whose objects are ranked.
        each: how many of each kind, or fewer where there are few objects.
    """
    noc = evaluation.noc(TARGET)
    quality = [float(np.mean(record.ious)) for record in evaluation.records]
    order = sorted(range(len(noc)), key=lambda index: (noc[index], -quality[index]))
    middle = max(0, (len(order) - each) // 2)
    chosen = {"best": order[:each], "median": order[middle : middle + each], "worst": order[-each:]}
    ranks = {index: rank for rank, indices in chosen.items() for index in indices}
    return [Place(rank, number) for number, rank in ranks.items()]


def find_sample(samples: SampleSet, evaluation: Evaluation, index: int) -> Sample | None:
    """Read the object of a record again; None if it is not where it was.

    Args:
        samples: that were evaluated; those without a pixel to click on have no record.
        evaluation: of them.
        index: of the record.
    """
    name = evaluation.records[index].name
    for loader in samples.loaders[index : index + len(evaluation.skipped) + 1]:
        try:
            sample = loader()
        except NothingToClickError:
            continue
        if sample.name == name:
            return sample
    return None


def click_by_click(sample: Sample, record: ObjectRecord, rank: str) -> Example:
    """Show an object's masks after its first clicks and its last, and the truth (the paper's Fig. 10)."""
    last = len(record.clicks)
    shown = [click for click in _SHOWN_CLICKS if click < last] + [last]
    panels = [
        _panel(
            sample,
            f"click {click}: IoU {record.ious[click - 1]:.3f}",
            mask_after(record, click),
            record.clicks[:click],
        )
        for click in shown
    ]
    clicks = f"{last} click{'' if last == 1 else 's'}"
    return Example(f"{rank}: {record.name}, {clicks}", (*panels, _panel(sample, "truth", sample.mask)))


def after_one_click(sample: Sample, records: Mapping[str, ObjectRecord], rank: str) -> Example:
    """Show what each method makes of an object's first click (the paper's Fig. 9).

    Args:
        sample: the object.
        records: of it, by method; all place the first click alike.
        rank: of the object.
    """
    panels = [
        _panel(sample, f"{name}: {record.ious[0]:.3f}", mask_after(record, 1), record.clicks[:1])
        for name, record in records.items()
    ]
    return Example(f"{rank}: {sample.name}", (*panels, _panel(sample, "truth", sample.mask)))


@torch.inference_mode()
def selected_tokens(sample: Sample, record: ObjectRecord, models: Mapping[str, MST], rank: str) -> Example:
    """Show which tokens each model's last fusion module selects at an object's first click (Fig. 8).

    Args:
        sample: the object.
        record: of it, which has the click.
        models: with extra scales, by name; in evaluation mode.
        rank: of the object.
    """
    panels = []
    for name, model in models.items():
        size = model.config.image_size
        crop = next_crop(sample.image, record.clicks[:1], None, size, EvalConfig())  # no zoom yet
        stage = outputs(model, [crop]).stages[-1]
        truth = resize(sample.mask.astype(np.float32), size, size) > 0.5
        inside = [f"{each.patch_size} px: {share_on_object(each, truth):.0%}" for each in stage.selections]
        chosen = stage.selections[int(stage.chosen[0])].patch_size
        view = draw_tokens(resize(crop.image, _HEIGHT, _HEIGHT), stage.selections, 0, _HEIGHT / size)
        view = draw_clicks(view, crop.clicks, _HEIGHT / size)
        panels.append(Panel(view, f"{name}; {', '.join(inside)}; {chosen} px guide"))
    return Example(f"{rank}: {sample.name}", (*panels, _panel(sample, "truth", sample.mask)))


def share_on_object(selection: Selection, truth: Mask) -> float:
    """Return the share of the first sample's selected tokens whose centres lie on the object, 0 .. 1.

    Args:
        selection: of one scale.
        truth: the object, as large as the network's input.
    """
    side, columns = selection.patch_size, selection.grid[1]
    rows, cols = np.divmod(selection.indices[0].cpu().numpy(), columns)
    return float(truth[rows * side + side // 2, cols * side + side // 2].mean())


def _panel(sample: Sample, caption: str, mask: Mask, clicks: Sequence[Click] = ()) -> Panel:
    scale = _HEIGHT / sample.image.shape[0]
    size = (_HEIGHT, round(sample.image.shape[1] * scale))
    # The mask is enlarged before it is drawn, so that its outline stays fine.
    view = overlay(resize(sample.image, *size), resize(mask.astype(np.float32), *size) > 0.5)
    return Panel(draw_clicks(view, clicks, scale), caption)


def mask_after(record: ObjectRecord, click: int) -> Mask:
    """Return an object's mask after so many clicks, (H, W); the last one where it was finished before."""
    return decode_rle(record.masks[min(click, len(record.masks)) - 1], record.height, record.width)

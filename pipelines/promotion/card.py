"""The model card of a version: figures, pictures of objects, what it was compared with and made from."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mst.config import Config
from mst.data.annotations import Sample
from mst.data.pixels.images import RGB, resize
from mst.evaluation import ObjectRecord
from mst.evaluation.metrics import number_of_clicks
from mst.evaluation.report.gallery import find_sample, mask_after, ranked
from mst.overrides import flatten
from mst.pictures import strip
from pipelines.promotion.comparison import Evaluated, Figures
from pipelines.promotion.rules import Reason

_TEMPLATE = "card.md.jinja"
_TARGET = 0.9
_MAX_WIDTH = 2000  # of a picture, in pixels


class Facts(NamedTuple):
    """What a card tells."""

    title: str
    figures: Mapping[str, Figures]
    """By data set."""
    comparison: str
    """What it was compared with, and why it was promoted."""
    reasons: Sequence[Reason]
    provenance: Mapping[str, str]
    config: Config


def write_card(folder: Path, facts: Facts, evaluated: Mapping[str, Evaluated]) -> None:
    """Write `card/README.md`, its pictures, `card/provenance.json` and `evaluation/` into a model's folder.

    Args:
        folder: of the model.
        facts: of the card.
        evaluated: by data set.
    """
    card = folder / "card"
    card.mkdir()
    for name, each in evaluated.items():
        picture = _objects(each)
        cv2.imwrite(str(card / f"{name}.jpg"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        kept = folder / "evaluation" / name
        kept.mkdir(parents=True)
        for file in ("records.parquet", "summary.json"):
            shutil.copy(each.folder / file, kept)
    (card / "README.md").write_text(_markdown(facts))
    (card / "provenance.json").write_text(json.dumps(dict(facts.provenance), indent=2))


def short(facts: Facts) -> str:
    """Return the card in short, as the description of a version; MLflow's page shows no tables."""
    lines = [
        f"- {name}, {each.objects} objects: NoC@85 {each.noc85}, NoC@90 {each.noc90}, "
        f"{each.ms_per_click:.0f} ms a click"
        for name, each in facts.figures.items()
    ]
    return "\n".join([f"**{facts.title}**", "", *lines, "", facts.comparison])


def _markdown(facts: Facts) -> str:
    defaults = flatten(Config())
    changed = {key: value for key, value in flatten(facts.config).items() if value != defaults[key]}
    here = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=here, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return pages.get_template(_TEMPLATE).render(**facts._asdict(), changed=changed)


def _objects(evaluated: Evaluated) -> RGB:
    """The best, the median and the worst object below each other."""
    evaluation = evaluated.evaluation
    rows = []
    for rank, number in ranked(evaluation, 1):
        sample = find_sample(evaluated.samples, evaluation, number)
        assert sample  # it was read a moment ago
        rows.append(_row(rank, evaluation.records[number], sample, evaluation.max_clicks))
    width = max(each.shape[1] for each in rows)
    padded = [np.pad(each, ((0, 8), (0, width - each.shape[1]), (0, 0)), constant_values=24) for each in rows]
    picture = np.concatenate(padded)
    share = min(1.0, _MAX_WIDTH / picture.shape[1])
    return resize(picture, round(share * picture.shape[0]), round(share * picture.shape[1]))


def _row(rank: str, record: ObjectRecord, sample: Sample, max_clicks: int) -> RGB:
    noc = number_of_clicks(record.ious, _TARGET, max_clicks)
    clicks = record.clicks[:noc]  # the robot went on to the highest target
    reached = f"NoC@90 {noc}" if max(record.ious) >= _TARGET else f"not 90 % in {max_clicks}"
    panels = [
        (f"{rank}: {reached}", None),
        *(
            (f"click {number}: IoU {record.ious[number - 1]:.2f}", mask_after(record, number))
            for number in sorted({1, len(clicks)})
        ),
        ("truth", sample.mask),
    ]
    return strip(sample.image, clicks, panels)

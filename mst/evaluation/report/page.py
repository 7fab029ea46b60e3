"""The page of a report: one HTML file without anything from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mst.data.files import written_whole
from mst.data.pixels.images import RGB
from mst.data.sources import SampleSet
from mst.errors import DataError
from mst.evaluation.report import figures, gallery
from mst.evaluation.report.evaluation import Evaluation
from mst.evaluation.report.gallery import Example
from mst.evaluation.report.tables import Table, comparison_table, main_table, paper_tables
from mst.model import MST

_TEMPLATE = "page.html.jinja"
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Pictured:
    """What the pictures of a data set are made from, beside the records."""

    samples: SampleSet
    """Its objects, as they were evaluated."""
    models: Mapping[str, MST] = field(default_factory=dict)
    """Those whose tokens are shown, by the name of their evaluations."""


class _Section(NamedTuple):
    """What the page has of one data set."""

    name: str
    tables: list[Table]
    iou_by_clicks: Markup
    noc_by_area: Markup
    object_sizes: Markup
    skipped: list[str]
    close_pixels: dict[str, str]
    click_by_click: list[Example]
    after_one_click: list[Example]
    selected_tokens: list[Example]


def write_page(path: Path, evaluations: Sequence[Evaluation], pictured: Mapping[str, Pictured]) -> None:
    """Write the report of some evaluations to a file that appears whole or not at all.

    Args:
        path: of the page; its folder is made where it is missing.
        evaluations: those of one data set on the same objects; the first of each is compared with the others.
        pictured: by data set; one that is missing has no pictures of objects.

    Raises:
        DataError: an object cannot be read any more, or the file cannot be written.
    """
    by_set: dict[str, list[Evaluation]] = {}
    for each in evaluations:
        by_set.setdefault(each.data_set, []).append(each)
    sections = [_section(each, pictured.get(name)) for name, each in by_set.items()]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    page = environment.get_template(_TEMPLATE).render(
        sections=sections, paper_tables=paper_tables(evaluations), evaluations=evaluations
    )
    with written_whole(path) as file:
        file.write_text(page, encoding="utf-8")


def _section(evaluations: Sequence[Evaluation], pictured: Pictured | None) -> _Section:
    first = evaluations[0]
    compared = comparison_table(evaluations)
    return _Section(
        first.data_set,
        [main_table(evaluations), *([compared] if compared else [])],
        Markup(figures.iou_by_clicks(evaluations)),
        Markup(figures.noc_by_area(evaluations)),
        Markup(figures.evaluated_sizes(first)),
        first.skipped,
        {
            each.subject: each.about["close_pixels"]
            for each in evaluations
            if each.about.get("close_pixels", "0") != "0"
        },
        *(_examples(evaluations, pictured) if pictured else ([], [], [])),
    )


def _examples(evaluations: Sequence[Evaluation], pictured: Pictured) -> tuple[list[Example], ...]:
    """Objects click by click, after one click, and with their tokens."""
    first = evaluations[0]
    stepwise, single, tokens = list[Example](), list[Example](), list[Example]()
    for rank, index in gallery.ranked(first):
        sample = gallery.find_sample(pictured.samples, first, index)
        if sample is None:
            raise DataError(f"{first.data_set}: '{first.records[index].name}' is not there any more")
        record = first.records[index]
        stepwise.append(gallery.click_by_click(sample, record, rank))
        if len(evaluations) > 1 and not first.corrects_masks:
            records = {each.subject: each.records[index] for each in evaluations}
            single.append(gallery.after_one_click(sample, records, rank))
        if pictured.models:
            tokens.append(gallery.selected_tokens(sample, record, pictured.models, rank))
    return stepwise, single, tokens


def _data_uri(image: RGB) -> str:
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()

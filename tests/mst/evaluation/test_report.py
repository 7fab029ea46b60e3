"""The report of an evaluation: its figures, its tables, and a page that needs nothing from elsewhere."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from upath import UPath

from mst.clicks import Click, Mask
from mst.data.annotations import ImageRecord, Sample
from mst.data.pixels.encode import annotate, decode_rle, encode_rle
from mst.data.sources import SampleSet
from mst.errors import DataError
from mst.evaluation import ObjectRecord, evaluate
from mst.evaluation.peers import open_click_disks
from mst.evaluation.records import write_table
from mst.evaluation.report import (
    Evaluation,
    Pictured,
    comparison_table,
    main_table,
    read_evaluations,
    write_page,
)
from mst.evaluation.report.figures import object_sizes
from mst.evaluation.report.gallery import find_sample, ranked
from mst.evaluation.report.tables import paper_tables
from mst.model import MST
from tests.conftest import TINY_MODEL, picture, random_mask

MAX_CLICKS = 3
ABOUT = {
    "eval.max_clicks": str(MAX_CLICKS),
    "format": "grabcut",
    "objects": "6",
    "objects_of_set": "6",
    "device": "a CPU",
}
OBJECTS = 6


def sample(number: int) -> Sample:
    mask = random_mask(np.random.default_rng(number))
    mask[5:12, 5:12] = True
    return Sample(f"object <{number}>", picture(number, 40, 50), mask)


SAMPLES = [sample(number) for number in range(OBJECTS)]


def wrong_by(share: float):
    """A method that knows the object but for a share of its rows."""
    truths = {each.image.tobytes(): each.mask for each in SAMPLES}

    def open_image(image):
        truth = truths[image.tobytes()]

        def segment(clicks) -> Mask:
            mask = truth.copy()
            mask[: round(share * len(mask) / len(clicks))] = False
            return mask

        return segment

    return open_image


def evaluated(subject: str, method, **about: str) -> Evaluation:
    records = evaluate(method, SAMPLES, MAX_CLICKS)
    return Evaluation(subject, "GrabCut", records, {**ABOUT, **about})


@pytest.fixture(scope="module")
def good() -> Evaluation:
    return evaluated("good & new", wrong_by(0.3), parameters="2000000", flops="4000000000", image_size="56")


@pytest.fixture(scope="module")
def disks() -> Evaluation:
    return evaluated("disks", open_click_disks)


def record(*ious: float) -> ObjectRecord:
    count = len(ious)
    return ObjectRecord(
        name="a",
        image_id=str(ious),
        height=40,
        width=50,
        area_share=0.1,
        extent=(0.2, 0.5),
        clicks=(Click(1, 2, is_positive=True),) * count,
        ious=ious,
        boundary_ious=ious,
        masks=(b"",) * count,
        seconds_model=(0.5,) * count,
        seconds_total=(1.0,) * count,
    )


def test_masks_come_back_from_their_run_lengths():
    rng = np.random.default_rng(0)
    for mask in (random_mask(rng), np.zeros((3, 7), bool), np.ones((1, 1), bool)):
        assert (decode_rle(encode_rle(mask), *mask.shape) == mask).all()


def test_a_record_tells_the_extent_and_every_mask_of_its_object(good):
    mask = np.zeros((40, 50), bool)
    mask[10:20, 5] = mask[19, 5:30] = True
    found = evaluate(lambda image: lambda clicks: mask, [Sample("a", picture(1, 40, 50), mask)], 1)[0]
    assert found.extent == (10 / 40, 25 / 50)
    for each in good.records:
        ious = [
            np.count_nonzero(shown & truth) / np.count_nonzero(shown | truth)
            for truth in [next(s.mask for s in SAMPLES if s.name == each.name)]
            for shown in (decode_rle(counts, each.height, each.width) for counts in each.masks)
        ]
        assert tuple(ious) == each.ious


def test_measures_follow_from_the_records():
    records = [record(0.7, 0.86), record(0.5, 0.6, 0.9), record(0.2, 0.3, 0.4)]
    measures = Evaluation("a", "b", records, ABOUT).measures
    assert measures["noc85"].value == pytest.approx((2 + 3 + 3) / 3)
    assert (measures["nof85"].value, measures["at_max85"].value) == pytest.approx((1, 2))
    assert measures["iou_at_1"].value == pytest.approx(1.4 / 3)
    assert measures["iou_at_3"].value == pytest.approx((0.86 + 0.9 + 0.4) / 3)
    assert measures["seconds_per_click"].value == pytest.approx(0.5)
    assert measures["seconds_per_click_total"].value == pytest.approx(1)
    for name, (value, low, high) in measures.items():
        assert low <= value <= high, name
    assert measures["nof85"].low == 0
    assert measures["nof85"].high == pytest.approx(3)


def test_an_encoding_is_told_apart_and_a_person_does_not_wait_for_the_first():
    times = {"seconds_model": (1.6, 0.2, 0.3), "seconds_encoding": (1.5, 0.0, 0.15)}
    quick = replace(record(0.5, 0.6, 0.9), **times, seconds_opening=0.8)
    slow = replace(record(0.5, 0.6, 0.9), **times, seconds_opening=1.4)  # a second of it is waited away
    measures = Evaluation("a", "b", [quick, slow], ABOUT).measures
    assert measures["seconds_per_click"].value == pytest.approx(0.7)
    assert measures["seconds_per_click_encoding"].value == pytest.approx(0.55)
    assert measures["seconds_per_click_met"].value == pytest.approx((0.7 * 6 - 0.8 - 1) / 6)
    titles = main_table([Evaluation("a", "b", [quick], ABOUT)]).columns
    assert titles[-2:] == ("of it encoding", "image known for 1 s")
    paper = Evaluation("a", "b", [record(0.5)], ABOUT)
    assert "seconds_per_click_encoding" not in paper.measures
    assert main_table([paper]).columns[-1] == "end to end"


def test_the_main_table_tells_methods_apart(good, disks):
    table = main_table([good, disks])
    assert table.columns[:4] == ("NoC@80", "NoC@85", "NoC@90", "NoC@95")
    assert [row.name for row in table.rows] == ["good & new", "disks"]
    assert all(len(row.cells) == len(table.columns) for row in table.rows)
    noc = table.columns.index("NoC@90")
    assert table.rows[1].cells[noc].text == "3.00"
    assert float(table.rows[0].cells[noc].text) < 3
    assert main_table([good], ["noc90"]).columns == ("NoC@90",)


def test_comparisons_are_of_the_first_with_each_other_method(good, disks):
    assert comparison_table([good]) is None
    table = comparison_table([good, disks])
    assert [row.name for row in table.rows] == ["disks"]
    difference = table.rows[0].cells[table.columns.index("NoC@90")]
    assert float(difference.text) == pytest.approx(good.noc(90).mean() - disks.noc(90).mean(), abs=0.005)
    assert difference.interval.startswith("[-")


def test_the_papers_tables_have_our_rows_beside_the_published(good, disks):
    noc, cost, correction, remote = paper_tables([good, disks])
    assert [row.name for row in noc.rows[:2]] == ["good & new", "disks"]
    assert noc.rows[-1].is_published
    assert (noc.rows[-1].name, noc.rows[-1].cells[0].text) == ("ViT-B+MST+CL", "1.48")
    assert noc.rows[0].cells[0].text == f"{good.measures['noc90'].value:.2f}"
    assert [cell.text for cell in cost.rows[0].cells[:2]] == ["2.00", "2.00"]
    assert cost.rows[0].name == "good & new, 56 px"
    assert cost.rows[1].is_published  # disks are no network, and cost no parameters
    assert not correction.has_ours
    assert not remote.has_ours
    assert all(
        len(row.cells) == len(table.columns)
        for table in (noc, cost, correction, remote)
        for row in table.rows
    )


def test_a_part_of_a_set_is_not_told_as_the_set(good):
    part = Evaluation("part", "mine", good.records, {**good.about, "objects_of_set": "50"})
    table = paper_tables([part])[0]
    assert table.rows[0].cells[0].text.endswith("*")
    assert "part of the set" in table.note


def test_a_corrected_mask_counts_for_table_iii_alone(good):
    about = {**good.about, "format": "davis585"}
    corrected = [replace(each, init_iou=0.8) for each in good.records]
    tables = paper_tables(
        [Evaluation("a", "DAVIS-585", corrected, about), Evaluation("a", "zero", good.records, about)]
    )
    cells = tables[2].rows[0].cells
    assert cells[0].text == cells[3].text == f"{good.measures['noc85'].value:.2f}"
    alone = paper_tables([Evaluation("a", "DAVIS-585", corrected, about)])[2].rows[0].cells
    assert [cell.text for cell in alone[3:]] == ["\N{EN DASH}"] * 3


def test_best_median_and_worst_are_ranked_by_clicks():
    records = [record(*[0.1] * (clicks - 1), 0.99) for clicks in (3, 1, 2)]
    evaluation = Evaluation("a", "b", records, ABOUT)
    assert [(place.rank, place.number) for place in ranked(evaluation, 1)] == [
        ("best", 1),
        ("median", 2),
        ("worst", 0),
    ]
    assert len(ranked(Evaluation("a", "b", records[:1], ABOUT))) == 1


def test_objects_are_found_behind_those_that_were_left_out(good):
    samples = SampleSet([_nothing_there, *[lambda each=each: each for each in SAMPLES]])
    shifted = Evaluation("a", "b", good.records, {**ABOUT, "skipped": '["gone: the mask is empty"]'})
    assert find_sample(samples, shifted, 4).name == good.records[4].name
    assert find_sample(SampleSet(samples.loaders[3:]), good, 4) is None


def _nothing_there() -> Sample:
    return Sample("gone", picture(0, 40, 50), np.zeros((40, 50), bool))


class Addresses(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.images = 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.images += tag == "img"
        self.loaded += [given[name] for name in ("src", "href", "xlink:href") if given.get(name)]
        assert tag not in ("script", "link", "iframe")


def test_the_page_is_one_file_that_needs_nothing_else(good, disks, tmp_path):
    path = tmp_path / "report.html"
    models = {good.subject: MST(TINY_MODEL).eval()}
    samples = SampleSet([lambda each=each: each for each in SAMPLES])
    other = Evaluation("good & new", "no pictures", good.records, good.about)
    write_page(path, [good, disks, other], {"GrabCut": Pictured(samples, models)})
    assert list(tmp_path.iterdir()) == [path]
    page = path.read_text()
    found = Addresses()
    found.feed(page)
    assert all(each.startswith(("data:image/", "#")) for each in found.loaded)
    places = ranked(good)
    clicks = sum(min(len(good.records[place.number].clicks), 3) for place in places)
    assert found.images == (clicks + len(places)) + len(places) * 3 + len(places) * 2
    assert "object &lt;0&gt;" in page
    assert "object <0>" not in page
    assert "url(http" not in page
    for heading in ("Fig. 2", "Fig. 6", "Fig. 7", "Fig. 8", "Fig. 9", "Fig. 10", "Table IV"):
        assert heading in page
    assert len(re.findall("<svg", page)) == 6
    again = tmp_path / "again.html"
    write_page(again, [good, disks, other], {"GrabCut": Pictured(samples, models)})
    assert again.read_text() == page


def test_an_object_that_is_gone_is_named_and_the_old_page_stays(good, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(DataError, match=r"GrabCut: 'object <\d>' is not there any more"):
        write_page(path, [good], {"GrabCut": Pictured(SampleSet([lambda: SAMPLES[0]]))})
    assert path.read_text() == "old"


def test_evaluations_of_other_objects_are_refused(good, disks, tmp_path):
    for evaluation, records in ((good, good.records), (disks, disks.records[1:])):
        about = {**evaluation.about, "subject": evaluation.subject, "data_set": "GrabCut"}
        write_table(tmp_path / "GrabCut" / evaluation.subject / "records.parquet", records, about)
    with pytest.raises(
        DataError, match=r"disks/records.parquet: other objects than in the other evaluations"
    ):
        read_evaluations(tmp_path)
    about = {**disks.about, "subject": "disks", "data_set": "GrabCut"}
    write_table(tmp_path / "GrabCut" / "disks" / "records.parquet", disks.records, about)
    found = read_evaluations(tmp_path)
    assert [each.subject for each in found] == ["good & new", "disks"]
    assert found[0].measures == good.measures
    write_table(tmp_path / "GrabCut" / "disks" / "records.parquet", disks.records, {})
    with pytest.raises(DataError, match="no 'subject' beside the records"):
        read_evaluations(tmp_path)


def test_the_page_tells_with_what_settings_it_was_run(good, tmp_path):
    path = tmp_path / "report.html"
    flipped = Evaluation("a", "b", good.records, {**good.about, "flip": "true"})
    write_page(path, [flipped], {})
    assert "<dt>flip</dt><dd>true</dd>" in path.read_text()


def test_sizes_of_objects_are_shares_of_their_images():
    mask = np.zeros((90, 140), bool)
    mask[20:30, 35:70] = True
    record = ImageRecord(UPath("image.png"), 90, 140, (annotate(mask, "one"),))
    stuff = record.with_objects([replace(annotate(mask, "two"), is_stuff=True)])
    np.testing.assert_allclose(object_sizes([record, stuff]), [[10 / 90, 35 / 140, 350 / (90 * 140)]])

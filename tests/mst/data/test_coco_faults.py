"""COCO files in which something is wrong: what remains is read rightly, what is wrong is left out by name."""

import copy
import json
import math
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from upath import UPath

from mst.data.readers.coco import read_coco
from mst.data.sources import read_records, read_samples
from mst.errors import ConfigError, DataError, MSTError

HEIGHT, WIDTH = 60, 80
MEGABYTES = 500


def polygon(top, left, side):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def square(top, left, side):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def runs(mask):
    flat = mask.flatten(order="F").astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *changes, len(flat)]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *lengths] if flat[0] else lengths}


PLACES = {11: (5, 10, 20), 12: (30, 40, 15), 21: (10, 10, 30), 31: (2, 2, 50)}
"""Top, left and side of each annotation's square; the first digit is the image."""
MASKS = {number: square(*place) for number, place in PLACES.items()}


def tables():
    """A file without a fault: polygons, and run lengths for one object."""
    annotations = []
    for number, (top, left, side) in PLACES.items():
        segmentation = runs(MASKS[number]) if number == 21 else [polygon(top, left, side)]
        annotations.append(
            {
                "id": number,
                "image_id": number // 10,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": segmentation,
                "area": side * side,
                "bbox": [left, top, side, side],
            }
        )
    images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / "train").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train" / f"{number}.png")
    return root


def write(root, content):
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))


def read(root, **options):
    return read_records(["coco:annotations/instances_train.json"], UPath(root), **options)


def masks_of(records):
    """Each object's mask by the number of its annotation, or what stands for that."""
    found = {}
    for record in records:
        for each in record.objects:
            number = each.name.rpartition(":")[2]
            found[int(number) if number.isdecimal() else number] = each.decode()
    return found


NUMBERS = st.sampled_from(
    [math.nan, math.inf, -math.inf, -1, 0, 0.5, 3, 2e8, 1e308, 10**400, -(10**30), 2**31, 2**63, True]
)
VALUES = st.recursive(
    NUMBERS | st.sampled_from([None, "", "x", "99", "\0", "../../x", {}, []]),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
    max_leaves=12,
)


@st.composite
def broken(draw):
    """A file with one wrong field, and what must be named where that costs an object."""
    content = tables()
    table = draw(st.sampled_from(["images", "annotations"]))
    place = draw(st.integers(0, len(content[table]) - 1))
    entry = content[table][place]
    field = draw(st.sampled_from(sorted(entry)))
    where = (table, entry["id"], place, field)
    kind = draw(st.sampled_from(["other", "missing", "inside"]))
    if kind == "missing":
        del entry[field]
    elif kind == "inside" and isinstance(entry[field], list | dict):
        inner = entry[field]
        while isinstance(inner, list) and isinstance(inner[0], list):
            inner = inner[0]
        key = draw(
            st.sampled_from(sorted(inner)) if isinstance(inner, dict) else st.integers(0, len(inner) - 1)
        )
        inner[key] = draw(VALUES)
    else:
        entry[field] = draw(VALUES)
    return content, where


def outcome(root):
    """The masks that are read and what is said to be wrong; or the error that ends the reading."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        records = read(root, max_faulty=1.0)
        found, said = masks_of(records), [str(each) for each in records.problems]
    except MSTError as error:
        found, said = None, [str(error)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES * 1024
    return found, said


@settings(max_examples=500, deadline=None)
@given(broken())
def test_one_wrong_field_is_read_rightly_or_named(root, drawn):
    content, (table, number, place, field) = drawn
    write(root, content)
    found, said = outcome(root)
    if found is None:  # an image that is not there, or outside the folder, ends the reading
        assert (table, field) == ("images", "file_name")
        return
    names = [f"image {number}: ", f"image #{place}: ", f":{number}: ", f":#{place}: "]
    mine = {each for each in MASKS if each // 10 == number} if table == "images" else {number}
    if (table, field) == ("images", "id"):  # it may be another image's now, which is in doubt as well
        new = content["images"][place].get("id")
        names.append(f"image {new}: ")
        mine |= {each for each in MASKS if each // 10 == new}
    for each in MASKS.keys() - mine:
        np.testing.assert_array_equal(found[each], MASKS[each])
    for each in mine & found.keys():
        if field == "segmentation" or found[each].shape != (HEIGHT, WIDTH):
            assert found[each].any()  # another shape that can be drawn, or another size that fits
        else:
            np.testing.assert_array_equal(found[each], MASKS[each])
    if (table, field) == ("annotations", "id") and number not in found:
        (renamed,) = found.keys() - MASKS.keys()
        np.testing.assert_array_equal(found[renamed], MASKS[number])
    else:
        for each in mine - found.keys():
            assert any(name in text for text in said for name in (*names, f":{each}: ")), said
    of_fields = [text for text in said if " lacks " in text or " is " in text]
    if (table, field) in (("images", "height"), ("images", "width")):  # told by the size that it makes
        of_fields = [text for text in of_fields if "beyond the image, which is " not in text]
    assert all(field in text or "the id is given to" in text for text in of_fields), said


def test_true_names_no_image_though_python_takes_it_for_one(root):
    content = tables()
    content["images"][1]["id"] = True
    write(root, content)
    found, said = outcome(root)
    for each, mask in MASKS.items():
        if each // 10 != 2:
            np.testing.assert_array_equal(found[each], mask)
    assert any("id is True, neither a whole number nor a text" in text for text in said)


def test_a_file_without_a_fault_is_read_whole(root):
    write(root, tables())
    records = read(root)
    assert records.problems == ()
    found = masks_of(records)
    assert found.keys() == MASKS.keys()
    for number, mask in found.items():
        np.testing.assert_array_equal(mask, MASKS[number])


def one(number, **changes):
    """A file of which one annotation has other fields."""
    content = tables()
    next(each for each in content["annotations"] if each["id"] == number).update(changes)
    return content


DERIVED = [
    *({"area": area} for area in (0, -1, 1e-3, math.nan, math.inf, "400", None, [], 1e308)),
    *(
        {"bbox": box}
        for box in (
            [0.1, 0.1, 0.2, 0.2],
            [math.nan] * 4,
            ["0"] * 4,
            [],
            None,
            "x",
            [0, 0, 0, 0],
            [900, 900, 5, 5],
        )
    ),
]


@pytest.mark.parametrize("changes", DERIVED, ids=str)
def test_area_and_box_are_measured_whatever_the_file_says(root, changes):
    write(root, one(11, **changes))
    records = read(root)
    (wrong, _), *_ = (record.objects for record in records)
    assert wrong.area == 400
    assert wrong.box == (5, 10, 25, 30)
    samples = read_samples(["coco:annotations/instances_train.json"], UPath(root))
    assert [int(sample.mask.sum()) for sample in samples] == [400, 225, 900, 2500]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2e8, 1e308, 10**400])
@pytest.mark.parametrize("place", [0, 3])
def test_coordinates_that_are_none_never_reach_the_decoder(root, value, place):
    wrong = polygon(*PLACES[11])
    wrong[place] = value
    write(root, one(11, segmentation=[wrong]))
    (problem,) = read(root, max_faulty=0.5).problems
    assert problem.kind == "malformed mask"
    assert str(problem).startswith("instances_train.json:11: segmentation[0] has ")


def test_points_a_little_outside_the_image_are_cut_off(root):
    write(root, one(11, segmentation=[polygon(-20, -20, 45)]))
    np.testing.assert_array_equal(masks_of(read(root))[11], square(0, 0, 25))


def test_a_polygon_of_four_numbers_is_no_box(root):
    write(root, one(11, segmentation=[[10, 5, 20, 20]]))
    (problem,) = read(root, max_faulty=0.5).problems
    assert "segmentation[0] has 4 numbers; a polygon is [x1, y1, x2" in str(problem)


def test_an_outline_of_endless_length_is_left_out(root):
    zigzag = [number for i in range(200_000) for number in ((0 if i % 2 else WIDTH), i % HEIGHT)]
    write(root, one(11, segmentation=[zigzag]))
    (problem,) = read(root, max_faulty=0.5).problems
    assert "segmentation[0] has an outline of" in str(problem)


def test_image_ids_that_name_several_images_are_refused_by_name(root):
    """Two exports put into one file: annotations were numbered anew, images were not."""
    content = tables()
    content["images"][2]["id"] = 1
    content["annotations"][3]["image_id"] = 1
    write(root, content)
    with pytest.raises(DataError, match=r"3 of 4 objects are faulty.*3 x image id of several images, as "
                       r"instances_train.json: image 1: the id is given to 1.png, 3.png"):  # fmt: skip
        read(root)
    assert masks_of(read(root, max_faulty=1.0)).keys() == {21}


def test_a_file_of_two_ids_gives_its_image_the_objects_of_both(root):
    content = tables()
    content["images"].append({**content["images"][0], "id": 9})
    content["annotations"][3]["image_id"] = 9
    write(root, content)
    found = {record.path.name: len(record.objects) for record in read(root)}
    assert found == {"1.png": 3, "2.png": 1, "3.png": 0}


def test_an_id_that_also_a_malformed_entry_has_names_no_image(root):
    content = tables()
    content["images"].append({"id": 1, "file_name": "3.png", "height": math.nan, "width": WIDTH})
    write(root, content)
    records = read(root, max_faulty=1.0)
    assert masks_of(records).keys() == {21, 31}
    assert records.left_out == {"malformed image entry": 2}


def test_an_image_that_is_said_to_have_two_sizes_is_left_out(root):
    content = tables()
    content["images"].append({**content["images"][0], "id": 9, "width": WIDTH + 1})
    write(root, content)
    records = read(root, max_faulty=1.0)
    assert masks_of(records).keys() == {21, 31}
    assert records.left_out == {"image of two sizes": 2}


def test_annotations_of_one_id_are_told_apart(root):
    write(root, one(12, id=11))
    records = read(root)
    assert [each.name for each in records[0].objects] == [
        "instances_train.json:11",
        "instances_train.json:11 (2)",
    ]
    assert [each.kind for each in records.problems] == ["annotation id of several objects"]


def test_an_annotation_that_stands_there_twice_is_one_object(root):
    content = tables()
    content["annotations"].append(copy.deepcopy(content["annotations"][0]))
    write(root, content)
    records = read_coco(UPath(root / "annotations" / "instances_train.json"))
    assert [len(record.objects) for record in records] == [2, 1, 1]
    assert [each.kind for each in records.problems] == ["annotation twice"]


def test_crowds_are_counted_and_taken_on_request(root):
    """As CVAT exports brush masks: run lengths, and iscrowd for each."""
    content = tables()
    for each in content["annotations"]:
        each.update(iscrowd=1, segmentation=runs(MASKS[each["id"]]))
    write(root, content)
    with pytest.raises(DataError, match=r"left out 4 x crowd, as .*:11: .*'\?crowds=objects' takes it"):
        read(root)
    source = "coco:annotations/instances_train.json?crowds=objects"
    assert masks_of(read_records([source], UPath(root))).keys() == MASKS.keys()
    content["annotations"][0]["iscrowd"] = 0
    write(root, content)
    assert read(root).left_out == {"crowd": 3}


@pytest.mark.parametrize("flag", ["0", "1", 0.0, [], 2])
def test_a_crowd_flag_that_is_none_is_named(root, flag):
    write(root, one(11, iscrowd=flag))
    (problem,) = read(root, max_faulty=0.5).problems
    assert str(problem).startswith("instances_train.json:11: iscrowd is ")


def test_other_sources_know_no_crowds(root):
    with pytest.raises(ConfigError, match="coco and lvis also with '\\?crowds=objects'"):
        read_records(["pairs:.?crowds=objects"], UPath(root))


def test_both_options_of_a_source(root):
    write(root, tables())
    source = "coco:annotations/instances_train.json?images=train&crowds=objects"
    assert len(read_records([source], UPath(root))) == 3

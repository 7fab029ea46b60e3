"""What annotation tools export, read as what was drawn: labelme and X-AnyLabeling, Label Studio, CVAT."""

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from upath import UPath

from mst.data.pixels.brush import brush_rle
from mst.data.sources import parse_source
from mst.errors import DataError
from tests.conftest import picture, png

HEIGHT, WIDTH = 90, 140
SQUARE = [(20, 10), (60, 10), (60, 40), (20, 40)]
OTHER = [(80, 50), (120, 50), (120, 80), (80, 80)]


def filled(*polygons) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for (left, top), _, (right, bottom), _ in polygons:
        mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def folder(tmp_path) -> Path:
    """Photos a to d."""
    (tmp_path / "photos").mkdir()
    for number, name in enumerate("abcd"):
        (tmp_path / "photos" / f"{name}.png").write_bytes(png(picture(number)))
    return tmp_path


def read(text: str, folder: Path):
    return parse_source(text, UPath(folder)).read()


def masks(record) -> list[np.ndarray]:
    return [each.decode() for each in record.objects]


def kinds(records) -> list[str]:
    return sorted(each.kind for each in records.problems)


def labelme(folder: Path, name: str, *shapes, **more) -> None:
    content = {
        "imagePath": f"{name}.png",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "shapes": shapes,
        **more,
    }
    (folder / "photos" / f"{name}.json").write_text(json.dumps(content | more))


def polygon(points, **more) -> dict:
    return {"label": "leaf", "points": points, "shape_type": "polygon", **more}


def test_labelme_has_polygons_masks_and_objects_of_several_parts(folder):
    inside = cv2.imencode(".png", filled(SQUARE)[10:40, 20:60].astype(np.uint8) * 255)[1].tobytes()
    mask = {"shape_type": "mask", "points": [[20, 10], [59, 39]], "mask": base64.b64encode(inside).decode()}
    labelme(folder, "a", polygon(SQUARE), polygon(OTHER, shape_type="rotation"))
    labelme(folder, "b", polygon(SQUARE, group_id=1), polygon(OTHER, group_id=1), mask)
    records = read("labelme:photos", folder)
    assert [each.path.name for each in records] == ["a.png", "b.png"]
    assert not records.problems or kinds(records) == ["files passed over"]
    np.testing.assert_array_equal(masks(records[0]), [filled(SQUARE), filled(OTHER)])
    np.testing.assert_array_equal(masks(records[1]), [filled(SQUARE), filled(SQUARE, OTHER)])


def test_labelme_names_what_it_leaves_out(folder):
    labelme(
        folder,
        "a",
        polygon([[1, 1], [9, 9]], shape_type="rectangle"),
        polygon([[1, 1], [2, 2]]),
        polygon("none"),
        {"shape_type": "mask", "points": [[0, 0]], "mask": "no base64"},
        "no shape",
    )
    labelme(folder, "b", polygon(SQUARE), imageHeight=91)
    labelme(folder, "c", polygon(SQUARE), imagePath="../elsewhere/gone.png")
    (folder / "photos" / "d.json").write_text("{")
    records = read("labelme:photos", folder)
    assert [len(each.objects) for each in records] == [0]
    lost = {each.kind: each.lost for each in records.problems}
    assert lost["image of another size than its annotation says"] == 1
    assert lost["image that is not there"] == 1
    assert lost["file that is none of labelme's"] == 0
    assert kinds(records).count("malformed mask") == 4
    assert kinds(records).count("annotation without a mask") == 1
    with pytest.raises(DataError, match="expected labelme's files"):
        read("labelme:.", folder / "photos" / "empty")


def region(kind: str, **value) -> dict:
    size = {"original_height": HEIGHT, "original_width": WIDTH}
    return {"id": "r", "type": kind, "value": value, **size}


def percent(points) -> list[list[float]]:
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]


def task(image: str, *results, **more) -> dict:
    return {"data": {"image": image}, "annotations": [{"result": each} for each in results], **more}


def export(folder: Path, *tasks) -> None:
    (folder / "export.json").write_text(json.dumps(tasks))


LABEL_STUDIO = "label_studio:export.json?images=photos"


def test_label_studio_has_brushes_and_polygons(folder):
    brush = region("brushlabels", rle=list(brush_rle(filled(OTHER))), format="rle")
    drawn = [brush, region("polygonlabels", points=percent(SQUARE)), region("choices", choices=["good"])]
    export(
        folder,
        task("/data/upload/1/0a1b2c3d-a.png", drawn),
        task("/data/local-files/?d=photos/b.png", [brush], [region("polygonlabels", points=percent(SQUARE))]),
    )
    records = read(LABEL_STUDIO, folder)
    assert [each.path.name for each in records] == ["a.png", "b.png"]
    np.testing.assert_array_equal(masks(records[0]), [filled(OTHER), filled(SQUARE)])
    np.testing.assert_array_equal(masks(records[1]), [filled(SQUARE)])  # the last annotation counts
    assert kinds(records) == ["earlier annotation of the same task"]


def test_label_studio_names_what_it_leaves_out(folder):
    boxes = [region("rectanglelabels", x=1, y=1, width=9, height=9), region("polygonlabels", points=[[1]])]
    export(
        folder,
        task("a.png", [*boxes, region("brushlabels", rle=[1, 2]), {"type": "brushlabels", "value": 3}]),
        task("gone.png", [region("polygonlabels", points=percent(SQUARE))]),
        {"data": {"image": "c.png"}, "annotations": []},
        {"data": {"image": "d.png"}, "annotations": [{"was_cancelled": True, "result": boxes}]},
        3,
    )
    records = read(LABEL_STUDIO, folder)
    assert [len(each.objects) for each in records] == [0]
    assert kinds(records) == [
        "annotation without a mask",
        "image that is not there",
        "malformed mask",
        "malformed mask",
        "malformed mask",
        "task that cannot be read",
        "task without an annotation",
        "task without an annotation",
    ]


CVAT = "cvat:annotations.xml?images=photos"


def points(polygon) -> str:
    return ";".join(f"{x}.00,{y}.00" for x, y in polygon)


def cvat(folder: Path, *images) -> None:
    (folder / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{''.join(images)}</annotations>"
    )


def image(name: str, *shapes: str, height: object = HEIGHT) -> str:
    return f'<image id="0" name="{name}" width="{WIDTH}" height="{height}">{"".join(shapes)}</image>'


def test_cvat_has_polygons_groups_and_masks(folder):
    rle = "0, 30, 5, 5, 10, 50"  # rows of a box of 20 x 5 pixels: 30 painted, 5 not, 5 painted, 10 not, 50
    cvat(
        folder,
        image(
            "a.png",
            f'<polygon label="leaf" points="{points(SQUARE)}" />',
            f'<mask label="leaf" rle="{rle}" left="100" top="60" width="20" height="5" />',
        ),
        image(
            "b.png",
            *(f'<polygon label="leaf" group_id="2" points="{points(each)}" />' for each in (SQUARE, OTHER)),
        ),
    )
    records = read(CVAT, folder)
    assert not records.problems
    runs = np.array([1] * 30 + [0] * 5 + [1] * 5 + [0] * 10 + [1] * 50, bool).reshape(5, 20)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[60:65, 100:120] = runs
    np.testing.assert_array_equal(masks(records[0]), [mask, filled(SQUARE)])
    np.testing.assert_array_equal(masks(records[1]), [filled(SQUARE, OTHER)])


def test_cvat_names_what_it_leaves_out(folder):
    box = 'left="130" top="60" width="20" height="5"'
    cvat(
        folder,
        image(
            "a.png",
            '<box xtl="1" ytl="1" xbr="9" ybr="9" />',
            '<polygon points="1,1;2" />',
            '<polygon points="1,one;2,2" />',
            f'<mask rle="0, 100" {box} />',
            '<mask rle="0, 99" left="0" top="0" width="20" height="5" />',
            '<tag label="good" />',
        ),
        image("gone.png", f'<polygon points="{points(SQUARE)}" />'),
        image("c.png", height="tall"),
    )
    records = read(CVAT, folder)
    assert [len(each.objects) for each in records] == [0]
    assert kinds(records) == [
        "annotation without a mask",
        "image entry without a size",
        "image that is not there",
        *["malformed mask"] * 4,
    ]


@pytest.mark.parametrize(
    ("source", "file", "content", "message"),
    [
        (LABEL_STUDIO, "export.json", "[]", "expected a list of tasks"),
        (LABEL_STUDIO, "export.json", "{", "no export of Label Studio"),
        (CVAT, "annotations.xml", "<annotations/>", "expected CVAT's format"),
        (CVAT, "annotations.xml", "<annotations", "no XML file"),
    ],
)
def test_another_file_is_refused_and_told_what_would_be_right(source, file, content, message, folder):
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read(source, folder)


def test_an_image_of_a_name_that_two_have_is_left_out(folder):
    (folder / "photos" / "session").mkdir()
    (folder / "photos" / "session" / "a.png").write_bytes(png(picture(9)))
    cvat(folder, image("session/a.png"), image("elsewhere/a.png"), image("b.png"))
    records = read(CVAT, folder)
    assert [each.path.name for each in records] == ["a.png", "b.png"]
    assert kinds(records) == ["image that is not there"]


def test_entities_of_xml_do_not_blow_up(folder):
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 10}">' for n in range(10))
    (folder / "annotations.xml").write_text(f"<!DOCTYPE a [{lines}]><annotations>&e9;</annotations>")
    with pytest.raises(DataError, match="no XML file"):
        read(CVAT, folder)

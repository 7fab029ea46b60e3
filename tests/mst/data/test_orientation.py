"""Photos that EXIF turns: a mask fits its photo from the server to the training sample, for every flag."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from upath import UPath

from mst.clicks import Click
from mst.client import Client
from mst.data.sampling.sampler import SampleKey
from mst.data.sampling.training_set import TrainingSet
from mst.data.sources import read_records, read_samples
from mst.errors import SizeError
from mst.overrides import override
from pipelines.preparation.checking import check
from tests.mst.data.test_images import turned

HEIGHT, WIDTH = 90, 140
CLICK = {"x": 30, "y": 20}


@pytest.fixture(scope="module")
def scene():
    """An upright scene of noise with a bright spot in its upper left part."""
    pixels = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
    pixels[10:30, 20:50] = (220, 40, 40)
    return Image.fromarray(pixels)


def files(root, scene, orientation, http):
    """A photo as it was stored, in images/ and in train/, and the mask that the server returned of it."""
    data = turned(scene, orientation)
    for folder in ("images", "train"):
        (root / folder).mkdir()
        (root / folder / "a.png").write_bytes(data)
    image = http.post("/v1/images", content=data).json()
    assert (image["height"], image["width"]) == (HEIGHT, WIDTH)
    request = {"clicks": [CLICK], "format": "png"}
    reply = http.post(f"/v1/images/{image['image_id']}/mask", json=request).json()
    return data, base64.b64decode(reply["mask"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_server_fits_its_photo_as_a_training_sample(tmp_path, scene, orientation, http, config):
    data, mask = files(tmp_path, scene, orientation, http)
    expected = np.asarray(Image.open(io.BytesIO(mask))) > 0
    assert expected.shape == (HEIGHT, WIDTH)
    assert expected[CLICK["y"], CLICK["x"]]
    np.testing.assert_array_equal(
        expected, Client(str(http.base_url)).segment(data, [Click(CLICK["y"], CLICK["x"], True)]).mask
    )
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(mask)
    write_coco(tmp_path, expected, HEIGHT, WIDTH)
    for source in ("pairs:.", "coco:annotations/instances_train.json"):
        (sample,) = read_samples([source], UPath(tmp_path))
        np.testing.assert_array_equal(sample.image, np.asarray(scene))
        np.testing.assert_array_equal(sample.mask, expected)
        records = read_records([source], UPath(tmp_path))
        whole = {"data.crop_whole": 1.0, "data.background": 0.0, "data.flip": 0.0, "data.min_area": 0.0}
        colours = {"data.brightness": 0.0, "data.contrast": 0.0, "data.rgb_shift": 0}
        drawn = TrainingSet(records, override(config, whole | colours))[SampleKey(0, 0, 0)]
        seen = np.asarray(scene.resize((56, 56), Image.Resampling.BILINEAR), np.float32)
        assert np.abs(drawn.image.permute(1, 2, 0).numpy() - seen).mean() < 25
        inside = np.asarray(Image.fromarray(expected).resize((56, 56))) > 0
        assert (drawn.mask[0].numpy().astype(bool) == inside).mean() > 0.9


def write_coco(root, mask, height, width):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    segmentation = {"size": list(mask.shape), "counts": rle["counts"].decode()}
    (root / "annotations").mkdir(exist_ok=True)
    tables = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(tables))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_annotation_of_the_pixels_as_stored_is_refused_and_said_to_be_so(
    tmp_path, scene, orientation, cluster
):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_bytes(turned(scene, orientation))
    stored = np.zeros((WIDTH, HEIGHT), bool)
    stored[20:50, 10:30] = True
    write_coco(tmp_path, stored, WIDTH, HEIGHT)
    source = ["coco:annotations/instances_train.json"]
    (record,) = read_records(source, UPath(tmp_path))
    said = (
        rf"as the pixels are stored; EXIF orientation {orientation} turns them, and pixels are always upright"
    )
    with pytest.raises(SizeError, match=said):
        record.read()
    _, problems = check(source, UPath(tmp_path))
    assert [each.kind for each in problems] == ["annotation of the pixels as stored, not upright"]
    assert said.partition(";")[0] in problems[0].detail

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mst.data.annotations import ObjectAnnotation
from mst.data.join import join_records
from mst.data.readers.coco import read_coco, read_lvis
from mst.data.sources import parse_source, read_records, read_samples
from mst.errors import AnnotationError, ConfigError, DataError, SizeError

HEIGHT, WIDTH = 40, 60
SQUARE = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]  # 20 x 20 at row 5, col 10


def square_mask(top=5, left=10, side=20):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def annotation(number, segmentation, *, box=(10, 5, 20, 20), **more):
    return {
        "id": number,
        "image_id": 1,
        "category_id": 1,
        "segmentation": segmentation,
        "area": 400.0,
        "bbox": list(box),
        **more,
    }


def write_set(root: Path, annotations, *, name="instances_val.json", file_name="a.jpg", **image) -> Path:
    """A COCO-shaped folder with one image."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "val").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(root / "val" / "a.jpg")
    entry = {"id": 1, "file_name": file_name, "height": HEIGHT, "width": WIDTH, **image}
    path = root / "annotations" / name
    path.write_text(json.dumps({"images": [entry], "annotations": annotations, "categories": []}))
    return path


def rle(mask, *, compressed=True):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    if compressed:
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = mask.flatten(order="F").astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def test_polygons_and_both_forms_of_rle_are_read_and_crowds_left_out(tmp_path):
    path = write_set(
        tmp_path,
        [
            annotation(1, SQUARE, iscrowd=0),
            annotation(2, rle(square_mask()), iscrowd=0),
            annotation(3, rle(square_mask(), compressed=False), iscrowd=0),
            annotation(4, rle(square_mask()), iscrowd=1),
        ],
    )
    (record,) = read_coco(path)
    assert [each.name for each in record.objects] == [f"instances_val.json:{n}" for n in (1, 2, 3)]
    for each in record.objects:
        np.testing.assert_array_equal(each.decode(), square_mask())
    assert record.objects[0].box == (5, 10, 25, 30)
    assert record.read().shape == (HEIGHT, WIDTH, 3)


def test_lvis_finds_its_images_by_their_coco_url(tmp_path):
    path = write_set(
        tmp_path,
        [annotation(1, SQUARE)],
        name="lvis_v1_val.json",
        coco_url="http://images.cocodataset.org/val/a.jpg",
    )
    (record,) = read_lvis(path)
    assert record.path == tmp_path / "val" / "a.jpg"
    np.testing.assert_array_equal(record.objects[0].decode(), square_mask())


def test_images_may_lie_elsewhere(tmp_path):
    write_set(tmp_path, [annotation(1, SQUARE)])
    (tmp_path / "val").rename(tmp_path / "pictures")
    (record,) = read_records(["coco:annotations/instances_val.json?images=pictures"], tmp_path)
    assert record.path.parent.name == "pictures"


def test_a_missing_image_is_named(tmp_path):
    path = write_set(tmp_path, [annotation(1, SQUARE)], file_name="b.jpg")
    with pytest.raises(DataError, match=r"1 of 1 images are missing, the first is .*val/b.jpg"):
        read_records([f"coco:{path}"], tmp_path)


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path, name):
    path = write_set(tmp_path / "set", [annotation(1, SQUARE)], file_name=name)
    with pytest.raises(DataError, match=r"image 1: the path .* leads outside"):
        read_coco(path)


def test_a_mask_of_the_wrong_size_is_left_out_and_named(tmp_path):
    path = write_set(tmp_path, [annotation(7, rle(np.ones((8, 8), bool)))])
    (problem,) = read_coco(path).problems
    assert str(problem) == "instances_val.json:7: the mask has size (8, 8), its image (40, 60)"
    with pytest.raises(DataError, match=r"instances_val.json:7: the mask has size \(8, 8\), its image"):
        read_records([f"coco:{path}"], tmp_path)


@pytest.mark.parametrize("counts", ["no RLE", [5, 3]])
def test_a_malformed_encoding_is_left_out_and_named(tmp_path, counts):
    path = write_set(tmp_path, [annotation(7, {"size": [40, 60], "counts": counts})])
    (problem,) = read_coco(path).problems
    assert str(problem).startswith("instances_val.json:7: segmentation.counts ")


def test_a_segmentation_that_no_reader_checked_is_refused_when_it_is_decoded():
    for counts in ("no RLE", [5, 3]):
        wrong = ObjectAnnotation({"size": [40, 60], "counts": counts}, 40, 60, "here:7")
        with pytest.raises(AnnotationError, match=r"here:7: (malformed segmentation|the counts)"):
            wrong.decode()
    with pytest.raises(SizeError, match=r"here:7: the mask has size \(8, 8\), its image \(40, 60\)"):
        ObjectAnnotation(rle(np.ones((8, 8), bool)), 40, 60, "here:7").decode()


def test_links_inside_the_root_are_followed(tmp_path):
    path = write_set(tmp_path / "elsewhere", [annotation(1, SQUARE)])
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for image in read_coco(path):
        image.path.rename(tmp_path / "picture.jpg")
        image.path.symlink_to(tmp_path / "picture.jpg")
    (record,) = read_coco(tmp_path / "data" / path.relative_to(tmp_path / "elsewhere"))
    assert record.read().shape == (40, 60, 3)


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    path = write_set(tmp_path, [annotation(1, SQUARE)], width=WIDTH + 1)
    with pytest.raises(DataError, match="40 x 60 pixels, its annotation says 40 x 61"):
        read_coco(path)[0].read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "not a COCO file"),
        ('{"images": [{"id": 1}], "annotations": []}', "lacks the field|malformed"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, content, message):
    path = tmp_path / "instances_val.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_coco(path)


def test_a_missing_file_or_root_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.json: No such file"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"data root .* is no folder"):
        read_records(["coco:a.json"], tmp_path / "none")


@pytest.mark.parametrize("text", ["annotations.json", "voc:a.xml", "coco:", "coco:a.json?folder=b"])
def test_a_wrong_source_says_what_is_right(tmp_path, text):
    with pytest.raises(ConfigError, match=r"is none of index:PATH, lvis:PATH, .*, grabcut:PATH"):
        parse_source(text, tmp_path)


def test_join_takes_lvis_first_and_what_it_lacks_from_coco(tmp_path):
    other = [[40.0, 5.0, 55.0, 5.0, 55.0, 25.0, 40.0, 25.0]]
    part = rle(square_mask(10, 15, 10))
    near = rle(square_mask(5, 10, 19))
    coco = read_coco(
        write_set(
            tmp_path,
            [
                annotation(1, SQUARE),  # LVIS has it
                annotation(2, other, box=(40, 5, 15, 20)),  # LVIS has not
                annotation(3, [[0, 0, 8, 0, 8, 8, 0, 8]], area=400.0),  # too small, whatever the file says
            ],
        )
    )
    lvis = read_lvis(
        write_set(
            tmp_path,
            [
                annotation(11, rle(square_mask())),
                annotation(12, near, box=(10, 5, 19, 19)),  # repeats 11
                annotation(13, part, box=(15, 10, 10, 10)),  # a part of 11: nests, stays
            ],
            name="lvis_val.json",
            coco_url="http://host/val/a.jpg",
        )
    )
    (joined,) = join_records(finer=lvis, coarser=coco)
    assert [each.name.rpartition(":")[2] for each in joined.objects] == ["11", "13", "2"]


def test_each_object_of_an_image_is_a_sample(tmp_path):
    write_set(
        tmp_path, [annotation(1, SQUARE), annotation(2, rle(square_mask(0, 0, 12)), box=(0, 0, 12, 12))]
    )
    samples = read_samples(["coco:annotations/instances_val.json"], tmp_path)
    assert [sample.mask.sum() for sample in samples] == [400, 144]


def write_grabcut(root: Path) -> np.ndarray:
    trimap = np.zeros((HEIGHT, WIDTH), np.uint8)
    trimap[5:25, 10:30] = 255
    trimap[25:27, 10:30] = 128
    for folder in ("data_GT", "boundary_GT"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(trimap).save(root / "boundary_GT" / "a.bmp")
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "data_GT" / "a.JPG", format="jpeg")
    return trimap


def test_grabcut_reads_object_and_void(tmp_path):
    trimap = write_grabcut(tmp_path)
    (sample,) = read_samples(["grabcut:."], tmp_path)
    assert sample.name == "grabcut/a"
    np.testing.assert_array_equal(sample.mask, trimap == 255)
    np.testing.assert_array_equal(sample.void, trimap == 128)


def test_grabcut_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="has the folders data_GT and boundary_GT"):
        read_samples(["grabcut:."], tmp_path)
    write_grabcut(tmp_path)
    (tmp_path / "boundary_GT" / "a.bmp").rename(tmp_path / "boundary_GT" / "b.bmp")
    with pytest.raises(DataError, match=r"1 of 1 trimaps are missing, the first is .*a.bmp"):
        read_samples(["grabcut:."], tmp_path)


def test_grabcut_is_not_for_training(tmp_path):
    with pytest.raises(ConfigError, match="for evaluation, not for training"):
        read_records(["grabcut:."], tmp_path)


def test_spread_and_shard_choose_the_same_objects_every_time(scenes):
    samples = read_samples(["coco:annotations/instances_val.json"], scenes)
    few = samples.spread(5)
    names = [sample.name for sample in few]
    assert len(set(names)) == 5
    sharded = [sample.name for rank in range(2) for sample in few.shard(rank, 2)]
    assert sorted(sharded) == sorted(names)


def write_label_maps(root: Path, *maps) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "regions").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(root / "images" / "7.jpg")
    for number, labels in enumerate(maps):
        Image.fromarray(labels).save(root / "regions" / f"7_{number}.png")
    return root


def test_every_region_of_every_label_map_is_an_object(tmp_path):
    one = np.where(square_mask(), 300, 0).astype(np.uint16)
    other = np.where(square_mask(left=35), 2, 1).astype(np.uint16)
    (record,) = read_records(["labels:bsds"], write_label_maps(tmp_path / "bsds", one, other).parent)
    assert [each.name for each in record.objects] == ["7_0.png:300", "7_1.png:1", "7_1.png:2"]
    for found, expected in zip(record.objects, (one == 300, other == 1, other == 2), strict=True):
        np.testing.assert_array_equal(found.decode(), expected)
    assert record.objects[0].box == (5, 10, 25, 30)
    assert record.objects[0].area == 400
    (same,) = read_records(["labels:twice"], write_label_maps(tmp_path / "twice", one, one).parent)
    assert len(same.objects) == 1  # two people drew the same


def test_one_label_map_a_photo_and_the_pixels_that_nobody_knows(tmp_path, caplog):
    """Photos may be named as BSDS's maps are, and the folder of one set can be read alone."""
    for name, left in (("a_1", 10), ("a_2", 20)):
        for kind, pixels in (("images", np.zeros((HEIGHT, WIDTH, 3))), ("masks", square_mask(left=left))):
            path = tmp_path / "more" / kind / "cats" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    Image.fromarray(square_mask(left=40).astype(np.uint8)).save(tmp_path / "more/masks/cats/a_1_void.png")
    whole = read_records(["labels:more"], tmp_path)
    alone = read_records(["labels:more/masks/cats?images=more/images/cats"], tmp_path)
    for records in (whole, alone):
        assert [[each.name for each in record.objects] for record in records] == [
            ["a_1.png:1"],
            ["a_2.png:1"],
        ]
        assert [record.objects[0].box[1] for record in records] == [10, 20]
    assert "1 photos have pixels that nobody knows" in caplog.text


def test_label_maps_that_do_not_fit_are_refused(tmp_path):
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    root = write_label_maps(tmp_path / "a", labels, labels[1:])
    with pytest.raises(DataError, match=r"1 of 2 objects are faulty.*7_1.png: 60 x 39 pixels, its photo has"):
        read_records(["labels:a"], tmp_path)
    (root / "images" / "7.jpg").unlink()
    with pytest.raises(DataError, match=r"no photo for 7"):
        read_records(["labels:a"], tmp_path)

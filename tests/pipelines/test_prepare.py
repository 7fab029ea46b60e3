"""`pipelines/prepare.py`: many sources become one index; faults of data are found."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from upath import UPath

from mst.data.index import Index
from mst.data.join import join_records, nest
from mst.data.sources import check_sources, read_by_part, read_records
from mst.errors import DataError
from pipelines import prepare as prepare_module
from pipelines.preparation.checking import check, write_sound
from pipelines.prepare import prepare
from pipelines.storage import PROJECT
from tests.conftest import command_here

SOURCES = ["lvis:annotations/lvis_train.json", "coco:annotations/instances_train.json"]
HEIGHT, WIDTH = 40, 60


def encoded(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def square(top, left, side):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def entry(number, mask, image_id=1, **more):
    rows, cols = np.nonzero(mask)
    box = [0, 0, 0, 0]
    if mask.any():
        box = [int(cols.min()), int(rows.min()), int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": encoded(mask),
        "area": int(mask.sum()),
        "bbox": box,
        **more,
    }


def write_coco(root: Path, images, annotations, name="instances_train.json"):
    """A COCO folder with one grey image for each of `images`, (id, file name, file or None)."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "train").mkdir(exist_ok=True)
    listed = [{"id": i, "file_name": file, "height": HEIGHT, "width": WIDTH} for i, file in images]
    for _, file in images:
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(root / "train" / file)
    tables = {"images": listed, "annotations": annotations, "categories": []}
    (root / "annotations" / name).write_text(json.dumps(tables))


def test_an_index_holds_what_the_join_gives(scenes, tmp_path, cluster):
    manifest = prepare(SOURCES, UPath(scenes), tmp_path / "index")
    index = Index(UPath(tmp_path / "index"), UPath(scenes))
    joined = {str(record.path): record for record in read_records(SOURCES, UPath(scenes))}
    assert {str(record.path) for record in index} == joined.keys()
    for record in index:
        expected = joined[str(record.path)].objects
        assert [each.name for each in record.objects] == [each.name for each in expected]
        for one, other in zip(record.objects, expected, strict=True):
            np.testing.assert_array_equal(one.decode(), other.decode())
    assert manifest["counts"]["images"] == len(joined)
    assert [each["source"] for each in manifest["sources"]] == SOURCES
    assert all(len(each["sha256"]) == 64 for each in manifest["sources"])
    assert manifest["rules"]["same_object_iou"] == 0.7
    assert not (tmp_path / "index.parts").exists()


def test_a_preparation_goes_on_where_it_was_stopped(scenes, tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(prepare_module, "IMAGES_PER_TASK", 4)
    write = prepare_module.write_index
    monkeypatch.setattr(prepare_module, "write_index", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit):
        prepare(SOURCES, UPath(scenes), tmp_path / "index")
    parts = sorted((tmp_path / "index.parts").glob("*.arrow"))
    assert len(parts) == 3
    parts[1].unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (parts[0], parts[2])}
    monkeypatch.setattr(prepare_module, "write_index", write)
    kept = {}
    monkeypatch.setattr(prepare_module.shutil, "rmtree", lambda path, **_: kept.update(
        {each.name: each.stat().st_mtime_ns for each in Path(path).glob("*.arrow")}))  # fmt: skip
    prepare(SOURCES, UPath(scenes), tmp_path / "index")
    assert before.items() <= kept.items()  # these were not joined again
    assert len(Index(UPath(tmp_path / "index"), UPath(scenes))) == 12


def test_parts_of_other_sources_are_not_gone_on_with(scenes, tmp_path, cluster):
    stale = tmp_path / "index.parts"
    stale.mkdir()
    (stale / "work.json").write_text('{"sources": "others"}')
    (stale / "00000.arrow").write_bytes(b"nothing")
    prepare(SOURCES, UPath(scenes), tmp_path / "index")
    assert len(Index(UPath(tmp_path / "index"), UPath(scenes))) == 12


def limited(megabytes: float):
    """Let no file of a process grow beyond a size: what a full disk does to a writer."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 1e6),) * 2)

    return limit


def test_a_disk_that_fills_leaves_no_index(scenes, tmp_path):
    """The rows of the index are larger than what may be written; with room the same command succeeds."""
    code = (
        "import sys; from upath import UPath; from pathlib import Path;"
        "from mst.data.index import to_batch, write_index; from mst.data.sources import read_records;"
        "from mst.errors import DataError\n"
        f"records = read_records({SOURCES!r}, UPath({str(scenes)!r}))\n"
        f"rows = [to_batch(records, UPath({str(scenes)!r}))] * 40\n"
        "try: write_index(Path(sys.argv[1]), rows, {})\n"
        "except DataError as error: sys.exit(f'error: {error}')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    failed = subprocess.run(
        command, check=False, cwd=PROJECT, capture_output=True, text=True, preexec_fn=limited(0.05)
    )
    assert failed.returncode == 1
    assert "index: the index could not be written (" in failed.stderr
    assert list(tmp_path.iterdir()) == []
    subprocess.run(command, cwd=PROJECT, check=True)
    assert (tmp_path / "index" / "manifest.json").exists()


def test_stuff_is_what_no_object_covers_and_parts_know_their_whole(tmp_path):
    whole, part, alone = square(5, 5, 30), square(10, 10, 10), square(5, 45, 12)
    write_coco(tmp_path, [(1, "a.jpg")], [entry(1, whole), entry(2, part), entry(3, alone)])
    ground = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ground[..., 0] = 7  # all of the image is segment 7, grass
    (tmp_path / "annotations" / "panoptic_train").mkdir()
    Image.fromarray(ground).save(tmp_path / "annotations" / "panoptic_train" / "a.png")
    segment = {"id": 7, "category_id": 2}
    panoptic = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [segment]}],
        "categories": [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}],
    }
    (tmp_path / "annotations" / "panoptic_train.json").write_text(json.dumps(panoptic))
    sources = ["coco:annotations/instances_train.json", "panoptic:annotations/panoptic_train.json"]
    (record,) = join_records(**read_by_part(check_sources(sources, UPath(tmp_path))))
    *objects, stuff = nest(record.objects)
    assert [each.parent for each in objects] == [-1, 0, -1]
    assert stuff.is_stuff
    assert stuff.parent == -1
    np.testing.assert_array_equal(stuff.decode(), ~(whole | alone))
    segment["category_id"] = 1  # a thing is no stuff
    (tmp_path / "annotations" / "panoptic_train.json").write_text(json.dumps(panoptic))
    (record,) = join_records(**read_by_part(check_sources(sources, UPath(tmp_path))))
    assert not any(each.is_stuff for each in record.objects)


ONE_OF_EACH = {
    "image missing or unreadable": "b.jpg",
    "image of another size than annotated": "c.jpg",
    "annotation of the pixels as stored, not upright": "turned.jpg",
    "annotation perhaps of the pixels as stored, not upright": "upside_down.jpg",
    "malformed image entry": "instances_train.json: image 9",
    "image id of several images": "instances_train.json: image 10",
    "image of two sizes": "instances_train.json: image 11",
    "image entry twice": "instances_train.json: image 1",
    "image twice": "a.jpg",
    "annotation twice": "instances_train.json:2",
    "annotation id of several objects": "instances_train.json:1",
    "annotation of no image": "instances_train.json:20",
    "empty mask": "instances_train.json:21",
    "mask of another size than its image": "instances_train.json:22",
    "malformed mask": "instances_train.json:23",
    "box in the file that is not the mask's": "instances_train.json:24",
    "area in the file that is not the mask's": "instances_train.json:25",
    "annotation without a mask": "instances_train.json:26",
    "malformed annotation": "instances_train.json:27",
}
BY_RULE = {
    "crowd": "instances_train.json:30",
    "object smaller than 80 px": "instances_train.json:31",
    "image without objects": "d.jpg",
}


@pytest.fixture
def faulty(tmp_path) -> Path:
    """A COCO folder with one fault of each kind, and what rules leave out."""
    root, good = tmp_path / "faulty", square(5, 5, 20)
    wrong_size = {"size": [20, 20], "counts": encoded(np.ones((20, 20), bool))["counts"]}
    annotations = [
        entry(1, good),
        entry(1, square(8, 30, 12)),
        entry(2, square(2, 40, 15)),
        entry(2, square(2, 40, 15)),
        entry(3, good, image_id=2),
        entry(4, good, image_id=3),
        entry(5, good, image_id=5),
        entry(6, good, image_id=6),
        entry(7, square(20, 2, 15), image_id=7),
        entry(8, good, image_id=10),
        entry(9, good, image_id=11),
        entry(20, good, image_id=99),
        entry(21, good & False, area=400, bbox=[5, 5, 20, 20]),
        entry(22, good, segmentation=wrong_size),
        entry(23, good, segmentation={"size": [HEIGHT, WIDTH], "counts": "no RLE"}),
        entry(24, square(25, 5, 14), bbox=[50, 5, 20, 20]),
        entry(25, square(25, 40, 14), area=0),
        entry(26, good, segmentation=[]),
        entry(27, good, iscrowd="0"),
        entry(30, good, iscrowd=1),
        entry(31, square(0, 0, 5)),
    ]
    files = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "turned.jpg", "upside_down.jpg", "e.jpg", "f.jpg", "g.jpg"]
    images = list(enumerate(files[:6], 1))
    images += [(1, "a.jpg"), (7, "a.jpg"), (10, "e.jpg"), (10, "f.jpg"), (11, "g.jpg"), (11, "g.jpg")]
    write_coco(root, images, annotations)
    path = root / "annotations" / "instances_train.json"
    tables = json.loads(path.read_text())
    tables["images"][-1]["width"] = WIDTH + 1
    tables["images"].append({"id": 9, "file_name": "h.jpg", "height": "NaN", "width": WIDTH})
    path.write_text(json.dumps(tables))
    (root / "train" / "b.jpg").write_bytes(b"no image")
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(root / "train" / "c.jpg")
    for name, orientation in (("turned", 6), ("upside_down", 3)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train" / f"{name}.jpg", exif=exif)
    return root


def test_each_kind_of_fault_is_found_and_left_out(faulty, tmp_path, cluster):
    sources = ["coco:annotations/instances_train.json"]
    sound, problems = check(sources, UPath(faulty))
    faults = {each.kind: Path(each.where).name for each in problems if each.is_fault}
    assert faults == ONE_OF_EACH
    assert {each.kind: Path(each.where).name for each in problems if not each.is_fault} == BY_RULE
    assert len(problems) == len(ONE_OF_EACH) + len(BY_RULE)
    assert all(each.detail for each in problems)
    manifest = write_sound(sound, UPath(faulty), tmp_path / "fixed", sources, problems)
    (record,) = Index(UPath(tmp_path / "fixed"), UPath(faulty))
    kept = [each.name.partition(":")[2] for each in record.objects]
    assert kept == ["1", "1 (2)", "2", "24", "25", "7"]
    assert [each.area for each in record.objects] == [400, 144, 225, 196, 196, 225]
    assert manifest["left_out"]["malformed mask"] == 1
    assert manifest["left_out"]["crowd"] == 1
    assert sum(manifest["left_out"].values()) == 14
    again, left = check([f"index:{tmp_path / 'fixed'}"], UPath(faulty))
    assert left == []
    assert len(again["finer"]) == 1


def test_a_training_refuses_data_of_which_too_much_is_faulty(faulty):
    source = ["coco:annotations/instances_train.json"]
    with pytest.raises(DataError, match=r"8 of 18 objects are faulty, and at most 10% .*malformed mask"):
        read_records(source, UPath(faulty))
    records = read_records(source, UPath(faulty), max_faulty=0.9)
    assert records.left_out["malformed mask"] == 1
    assert records.left_out["crowd"] == 1


def test_missing_images_are_faults_too(faulty, cluster):
    (faulty / "train" / "b.jpg").unlink()
    _, problems = check(["coco:annotations/instances_train.json"], UPath(faulty))
    found = [each.where for each in problems if each.kind == "image missing or unreadable"]
    assert found == [str(faulty / "train" / "b.jpg")]


def test_the_command_line_checks_fixes_and_draws(faulty, scenes, tmp_path, cluster, monkeypatch):
    def run(root, *options):
        return command_here("pipelines/prepare.py", "--root", root, *options)

    monkeypatch.setenv("COLUMNS", "300")
    found = run(faulty, "--check", "coco:annotations/instances_train.json")
    assert found.returncode == 1
    assert all(kind in found.stdout for kind in (*ONE_OF_EACH, *BY_RULE))
    assert "Traceback" not in found.stderr
    sound = run(
        scenes,
        "--check",
        "--picture",
        tmp_path / "pictures",
        "--samples",
        6,
        "--data.copy_paste",
        1,
        *SOURCES[1:],
    )
    assert sound.returncode == 0, sound.stderr
    assert "no problems" in sound.stdout
    for name in ("samples.jpg", "sizes.png"):
        picture = cv2.imread(str(tmp_path / "pictures" / name))
        assert picture.std() > 10
    nothing = run(scenes, *SOURCES)
    assert "give --out, --check or --picture" in nothing.stderr

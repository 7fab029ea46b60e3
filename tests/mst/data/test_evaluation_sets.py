import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from upath import UPath

from mst.data.annotations import Sample
from mst.data.files import fetch
from mst.data.readers.evaluation_sets import EVALUATION_SETS, size_class
from mst.errors import DataError

HEIGHT, WIDTH = 40, 60


def read(name: str, root: Path | UPath, fetch=fetch) -> list[Sample]:
    """The samples of a set, of loaders that went to another process and back."""
    return [load() for load in pickle.loads(pickle.dumps(EVALUATION_SETS[name](UPath(root), fetch)))]


def square(top=5, left=10, side=20, shape=(HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def write_photo(path: Path, grey: int = 90, size=(WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def write_labels(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def write_palette(path: Path, labels: np.ndarray) -> None:
    """Labels with a palette whose colours are all dark, so that only the ids tell the object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette([value for number in range(256) for value in (number // 4, 0, number // 8)])
    image.save(path)


def write_rgb_mask(path: Path, mask: np.ndarray, low: int = 0, high: int = 255) -> None:
    write_labels(path, np.repeat(np.where(mask, high, low)[..., None], 3, axis=2))


def write_mat(path: Path, labels: np.ndarray) -> None:
    """A file of SBD: the 1 x 1 struct GTinst, with the cells of borders beside the label map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    borders = np.empty((2, 1), object)
    borders[:, 0] = [np.zeros((3, 3)), np.ones((3, 3))]
    struct = {"Segmentation": labels.astype(np.uint8), "Boundaries": borders, "Categories": [[9], [15]]}
    savemat(path, {"GTinst": struct}, do_compression=True)


def write_voc(root: Path, labels: np.ndarray, split: str = "2007_1\n") -> None:
    write_photo(root / "JPEGImages" / "2007_1.jpg")
    write_photo(root / "JPEGImages" / "2007_2.jpg")  # of another split
    write_palette(root / "SegmentationObject" / "2007_1.png", labels)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text(split)


def write_pairs(root: Path, images: str = "img", masks: str = "gt") -> None:
    for number, name in enumerate(("a", "b")):
        write_photo(root / images / f"{name}.jpg", grey=50 * (1 + number))
        write_palette(root / masks / f"{name}.png", 7 * square(side=10 + number))


def test_grabcut_has_object_and_void(tmp_path):
    trimap = 255 * square() + 128 * square(30, 10, 5)
    write_photo(tmp_path / "data_GT" / "a.JPG", grey=90)
    write_labels(tmp_path / "boundary_GT" / "a.bmp", trimap)
    write_labels(tmp_path / "boundary_GT" / "unused.bmp", trimap)
    for name in ("Thumbs.db", "._a.JPG"):
        (tmp_path / "data_GT" / name).touch()
    (sample,) = read("grabcut", tmp_path)
    assert sample.name == "grabcut/a"
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(sample.mask, square())
    np.testing.assert_array_equal(sample.void, square(30, 10, 5))
    assert sample.init_mask is None
    assert sample.size_class == ""


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("img", "gt")])
def test_berkeley_may_have_several_objects_of_an_image(tmp_path, images, masks):
    for name, grey in (("a", 40), ("b", 80)):
        write_photo(tmp_path / images / f"{name}.jpg", grey)
    write_rgb_mask(tmp_path / masks / "a.png", square(), low=127, high=128)
    write_rgb_mask(tmp_path / masks / "b#1.png", square(side=11))
    write_rgb_mask(tmp_path / masks / "b#2.png", square(side=12))
    samples = read("berkeley", tmp_path)
    assert [sample.name for sample in samples] == ["berkeley/a", "berkeley/b#1", "berkeley/b#2"]
    assert [sample.image[0, 0, 0] for sample in samples] == [40, 80, 80]
    for sample, side in zip(samples, (20, 11, 12), strict=True):
        np.testing.assert_array_equal(sample.mask, square(side=side))
        assert sample.void is None


def test_davis_takes_any_label_for_the_object(tmp_path):
    write_photo(tmp_path / "img" / "dogs_00010.jpg")
    write_palette(tmp_path / "gt" / "dogs_00010.png", square() + 2 * square(5, 40, 8))
    (sample,) = read("davis", tmp_path)
    assert sample.name == "davis/dogs_00010"
    np.testing.assert_array_equal(sample.mask, square() | square(5, 40, 8))


def test_coco_mval_has_black_and_white_masks(tmp_path):
    write_photo(tmp_path / "img" / "1.jpg", 40)
    write_photo(tmp_path / "img" / "2.png", 80)
    write_labels(tmp_path / "gt" / "1.png", 255 * square())
    write_rgb_mask(tmp_path / "gt" / "2.png", square(side=7))
    samples = read("coco_mval", tmp_path)
    assert [sample.name for sample in samples] == ["coco_mval/1", "coco_mval/2"]
    assert [sample.image[0, 0, 0] for sample in samples] == [40, 80]
    assert [sample.mask.sum() for sample in samples] == [400, 49]


@pytest.mark.parametrize("folders", [("img", "gt", "init"), ("images", "masks", "init_masks")])
def test_davis585_has_initial_masks(tmp_path, folders):
    images, masks, inits = folders
    write_pairs(tmp_path, images, masks)
    for name, side in (("a", 4), ("b", 0)):
        write_labels(tmp_path / inits / f"{name}.png", 255 * square(side=side))
    first, second = read("davis585", tmp_path)
    assert [first.name, second.name] == ["davis585/a", "davis585/b"]
    np.testing.assert_array_equal(first.mask, square(side=10))
    np.testing.assert_array_equal(first.init_mask, square(side=4))
    assert second.init_mask is not None
    assert not second.init_mask.any()


def test_pascal_voc_has_the_objects_of_its_split(tmp_path):
    labels = square() + 3 * square(5, 40, 8) + 255 * square(30, 0, 6)
    write_voc(tmp_path, labels)
    first, second = read("pascal_voc", tmp_path)
    assert [first.name, second.name] == ["pascal_voc/2007_1:1", "pascal_voc/2007_1:3"]
    np.testing.assert_array_equal(first.mask, square())
    np.testing.assert_array_equal(second.mask, square(5, 40, 8))
    for sample in (first, second):
        np.testing.assert_array_equal(sample.void, square(30, 0, 6))


def test_sbd_has_matlab_files(tmp_path):
    for name in ("a", "b"):
        write_photo(tmp_path / "img" / f"{name}.jpg")
        write_mat(tmp_path / "inst" / f"{name}.mat", square() + 2 * square(5, 40, 8))
    (tmp_path / "val.txt").write_text("b\n")
    first, second = read("sbd", tmp_path)
    assert [first.name, second.name] == ["sbd/b:1", "sbd/b:2"]
    np.testing.assert_array_equal(first.mask, square())
    np.testing.assert_array_equal(second.mask, square(5, 40, 8))
    assert first.void is None


@pytest.mark.parametrize("content", [b"no MATLAB file", None])
def test_sbd_names_a_broken_file(tmp_path, content):
    write_photo(tmp_path / "img" / "a.jpg")
    (tmp_path / "inst").mkdir()
    (tmp_path / "val.txt").write_text("a")
    if content is None:
        savemat(tmp_path / "inst" / "a.mat", {"GTcls": {"Segmentation": np.ones((2, 2))}})
    else:
        (tmp_path / "inst" / "a.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"a.mat: no MATLAB file with GTinst.Segmentation"):
        read("sbd", tmp_path)


def loveda_labels() -> np.ndarray:
    """Water (4): 400 px, 80 px by a corner, 79 px alone; forest (6): 1600 px; a corner without data."""
    labels = np.ones((64, 100), np.uint8)
    labels[:4, :4] = 0
    labels[5:25, 10:30] = 4
    labels[25:29, 30:50] = 4  # touches the last by a corner: the same component
    labels[40:44, 0:20] = 4
    labels[40, 0] = 1  # 79 px: too small
    labels[50:54, 0:20] = 4  # 80 px: the smallest
    labels[20:60, 60:100] = 6
    return labels


def write_loveda(folder: Path) -> None:
    write_photo(folder / "images_png" / "2.png", size=(100, 64))
    write_labels(folder / "masks_png" / "2.png", loveda_labels())


def test_loveda_has_the_components_of_each_class(tmp_path):
    write_loveda(tmp_path)
    labels = loveda_labels()
    joint, smallest, forest = read("loveda", tmp_path)
    assert [joint.name, smallest.name, forest.name] == ["loveda/2:4:1", "loveda/2:4:3", "loveda/2:6:1"]
    np.testing.assert_array_equal(joint.mask, (labels == 4) & (np.arange(64) < 30)[:, None])
    np.testing.assert_array_equal(smallest.mask, (labels == 4) & (np.arange(64) >= 50)[:, None])
    np.testing.assert_array_equal(forest.mask, labels == 6)
    assert [each.size_class for each in (joint, smallest, forest)] == ["small", "small", "medium"]
    for sample in (joint, smallest, forest):
        np.testing.assert_array_equal(sample.void, labels == 0)


def test_loveda_may_lie_in_folders_of_folders(tmp_path):
    for place in ("Val/Rural", "Val/Urban", "Train/Urban"):
        write_loveda(tmp_path / place)
    write_photo(tmp_path / "Test" / "Rural" / "images_png" / "5.png")  # published without masks
    names = [sample.name for sample in read("loveda", tmp_path)]
    assert len(names) == len(set(names)) == 9
    assert names[::3] == ["loveda/Train/Urban/2:4:1", "loveda/Val/Rural/2:4:1", "loveda/Val/Urban/2:4:1"]


def test_size_classes_end_where_they_say():
    areas = (80, 32**2 - 1, 32**2, 96**2 - 1, 96**2, 256**2 - 1, 256**2)
    expected = ["small", "small", "medium", "medium", "large", "large", "huge"]
    assert [size_class(area) for area in areas] == expected


def test_files_are_read_by_fetch_alone_and_when_asked_for(tmp_path, monkeypatch):
    write_pairs(tmp_path)
    fetched = []

    def record(path):
        fetched.append(path.name)
        return Path(path).read_bytes()

    loaders = EVALUATION_SETS["davis"](UPath(tmp_path), record)
    assert fetched == []
    loaders[1]()
    assert sorted(fetched) == ["b.jpg", "b.png"]
    fetched.clear()
    write_voc(tmp_path / "voc", square())
    loaders = EVALUATION_SETS["pascal_voc"](UPath(tmp_path / "voc"), record)
    assert sorted(fetched) == ["2007_1.png", "val.txt"]


def test_a_set_may_lie_in_a_store(tmp_path):
    write_loveda(tmp_path / "Val" / "Rural")
    write_pairs(tmp_path / "davis")
    write_rgb_mask(tmp_path / "berkeley" / "gt" / "a#1.png", square())
    write_photo(tmp_path / "berkeley" / "img" / "a.jpg")
    store = UPath("memory://evaluation_sets")
    for path in tmp_path.rglob("*.*"):
        copy = store / path.relative_to(tmp_path).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert [sample.mask.sum() for sample in read("davis", store / "davis")] == [100, 121]
    assert read("loveda", store)[0].name == "loveda/Val/Rural/2:4:1"
    assert [sample.name for sample in read("berkeley", store / "berkeley")] == ["berkeley/a#1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grabcut", "GrabCut set, which has the folders data_GT and boundary_GT"),
        ("berkeley", "Berkeley set, which has the folders images or img and masks or gt"),
        ("davis", "DAVIS set, which has the folders images or img and masks or gt"),
        ("coco_mval", "COCO_MVal set, which has the folders images or img and masks or gt"),
        ("davis585", "DAVIS585 set, .* masks or gt and init_masks or init"),
        ("pascal_voc", "PASCAL_VOC set, which has the folders JPEGImages and SegmentationObject"),
        ("sbd", "SBD set, which has the folders img and inst"),
        ("loveda", "LoveDA set, which has the folders images_png and masks_png"),
    ],
)
def test_another_layout_is_refused(tmp_path, name, expected):
    for folder in ("img", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(DataError, match=f"{expected}.*; found img, other$"):
        read(name, tmp_path)
    with pytest.raises(DataError, match=f"{expected}.*; found none$"):
        read(name, tmp_path / "nowhere")


def test_a_missing_mask_is_named_and_counted(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "gt" / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 masks are missing, the first is .*gt/b\.\*"):
        read("davis", tmp_path)


def test_a_missing_image_is_named_and_counted(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "img" / "a.jpg").unlink()
    write_palette(tmp_path / "gt" / "b#2.png", square())
    with pytest.raises(DataError, match=r"1 of 2 images are missing, the first is .*img/a\.\*"):
        read("davis", tmp_path)


def test_a_missing_initial_mask_is_named_and_counted(tmp_path):
    write_pairs(tmp_path)
    write_palette(tmp_path / "init" / "a.png", square())
    with pytest.raises(DataError, match=r"1 of 2 initial masks are missing, the first is .*init/b\.\*"):
        read("davis585", tmp_path)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("2007_1 2007_2", r"1 of 2 label maps are missing, the first is .*SegmentationObject/2007_2\.\*"),
        ("2007_1 ../a ../b", r"2 of 3 images are missing, the first is .*\.\./a\.\*"),
    ],
)
def test_a_split_that_names_missing_files_is_refused(tmp_path, split, message):
    write_voc(tmp_path, square(), split)
    with pytest.raises(DataError, match=message):
        read("pascal_voc", tmp_path)


def test_a_missing_split_is_named(tmp_path):
    write_voc(tmp_path, square())
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val.txt: No such file"):
        read("pascal_voc", tmp_path)


def test_masks_of_another_size_than_their_image_are_refused(tmp_path):
    other = square(shape=(HEIGHT, WIDTH + 1))
    write_pairs(tmp_path)
    for name in ("a", "b"):
        write_palette(tmp_path / "init" / f"{name}.png", square())
    write_palette(tmp_path / "init" / "a.png", other)
    said = r"the mask has the shape \(40, 61\), its image \(40, 60\)"
    with pytest.raises(DataError, match=f"davis585/a, init_mask: {said}"):
        read("davis585", tmp_path)
    write_palette(tmp_path / "gt" / "a.png", other)
    with pytest.raises(DataError, match=f"davis/a, mask: {said}"):
        read("davis", tmp_path)


def test_an_empty_mask_is_refused(tmp_path):
    write_pairs(tmp_path)
    write_palette(tmp_path / "gt" / "a.png", square(side=0))
    with pytest.raises(DataError, match="davis/a: the mask is empty"):
        read("davis", tmp_path)


def test_a_palette_set_with_coloured_masks_is_refused(tmp_path):
    write_pairs(tmp_path)
    write_rgb_mask(tmp_path / "gt" / "a.png", square())
    with pytest.raises(
        DataError, match=r"gt/a.png: expected one label per pixel, found an image of mode RGB"
    ):
        read("davis", tmp_path)

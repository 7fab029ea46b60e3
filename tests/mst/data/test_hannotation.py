import os
import pickle
from collections import OrderedDict

import cv2
import numpy as np
import pytest
from numpy.f2py.crackfortran import myeval
from numpy.testing import runstring
from upath import UPath

from mst.data.readers.hannotation import read_hannotation
from mst.data.readers.plain_pickle import loads
from mst.errors import DataError

HEIGHT, WIDTH = 20, 30
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Call:
    """Pickles to the call of a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def opcode_call(module, name, argument):
    """A pickle that calls module.name(argument) by a name that `pickle.dumps` would not write."""
    texts = [b"X" + len(each).to_bytes(4, "little") + each.encode() for each in (module, name, argument)]
    return b"\x80\x04" + texts[0] + texts[1] + b"\x93" + texts[2] + b"\x85R."


def exploits(marker):
    """Pickles by name, each of which makes the file `marker` when `pickle.loads` reads it."""
    touch = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w').close()"
    payloads = {
        "system": Call(os.system, touch),
        "eval": Call(eval, python),
        "exec": Call(exec, python),
        "runstring": Call(runstring, python, {}),
        "myeval": Call(myeval, f"{python} or 0"),
        "object array": np.array([Call(os.system, touch)], dtype=object),
        "record": np.array([(1, Call(os.system, touch))], dtype=[("a", "i4"), ("b", "O")]),
        "among arrays": {"a": [np.ones(3), (Call(os.system, touch),)]},
    }
    pickles = {f"{name} {p}": pickle.dumps(each, p) for name, each in payloads.items() for p in (0, 2, 4, 5)}
    pickles["dotted name"] = opcode_call("shutil", "os.system", touch)
    pickles["numpy's os"] = opcode_call("numpy", "f2py.os.system", touch)
    pickles["nested getattr"] = (
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'"
        + touch.encode()
        + b"'\ntR."
    )
    pickles["inst"] = b"(S'" + touch.encode() + b"'\nios\nsystem\n."
    pickles["obj"] = b"(cos\nsystem\nS'" + touch.encode() + b"'\no."
    return pickles


NAMES = list(exploits("marker"))


@pytest.mark.parametrize("name", NAMES)
def test_no_pickle_runs_code(tmp_path, name):
    marker = tmp_path / "marker"
    payload = exploits(marker)[name]
    with pytest.raises(DataError, match=r"^file: refused to load "):
        loads(payload, "file")
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists(), "this is no exploit"


def test_the_refused_name_is_told():
    with pytest.raises(DataError, match=r"^masks.pickle: refused to load 'posix.system' from a pickle"):
        loads(pickle.dumps(os.system), "masks.pickle")


NUMPY = b"cnumpy._core.multiarray\n"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        pytest.param(b"cnumpy\ndtype\n}S'x'\nK\x01sb.", "change a function", id="attribute of a stand-in"),
        pytest.param(b"cnumpy\ndtype\nN}S'x'\nK\x01s\x86b.", "change a function", id="its slot"),
        pytest.param(NUMPY + b"_reconstruct\n}S'x'\nK\x01sb.", "change a function", id="of another"),
        pytest.param(b"\x80\x02cnumpy\ndtype\n)\x81.", "broken pickle", id="made by __new__"),
        pytest.param(b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.", "refused the codec 'zip'", id="codec"),
        pytest.param(b"c__builtin__\nbytes\n(I1000000000000\ntR.", "broken pickle", id="bytes of a size"),
        pytest.param(b"cnumpy\nndarray\n((I9\ntS'O'\ntR.", "refused to make an array", id="ndarray called"),
        pytest.param(b"cnumpy\ndtype\n(S'O8'\ntR.", "refused to load dtype 'O8'", id="object dtype"),
        pytest.param(b"cnumpy\ndtype\n((lp0\ntR.", r"refused to load dtype \[\]", id="record dtype"),
        pytest.param(
            b"cnumpy\ndtype\n(S'u1'\ntR(I3\nS'|'\nN(S'a'\nt}I8\nI8\nI63\ntb.",
            "several fields",
            id="dtype state",
        ),
        pytest.param(
            NUMPY + b"_reconstruct\n(NNNtR(I1\n(I999\ntcnumpy\ndtype\n(S'u1'\ntRI00\nC\x02abtb.",
            "cannot reshape",
            id="array longer than its bytes",
        ),
        pytest.param(NUMPY + b"fromfile\n(S'/etc/passwd'\ntR.", "refused to load", id="fromfile"),
        pytest.param(b"Pelsewhere\n.", "broken pickle", id="persistent id"),
        pytest.param(b"\x80\x04\x95", "broken pickle", id="truncated"),
        pytest.param(b"", "broken pickle", id="empty"),
        pytest.param(b"\x80\x09.", "broken pickle", id="unknown protocol"),
    ],
)
def test_crafted_pickles_are_refused(payload, message):
    with pytest.raises(DataError, match=f"^file: .*{message}"):
        loads(payload, "file")


ARRAYS = {
    "bytes": np.arange(256, dtype=np.uint8),
    "empty": np.zeros(0, np.uint8),
    "booleans": np.array([True, False]),
    "big-endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(10, dtype=np.uint16)[::2],
    "no axes": np.array(3 + 2j),
}


def numpy_1(data):
    """The same pickle as NumPy 1 writes it."""
    for new in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = new.replace(b"_core", b"core")
        data = data.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
        data = data.replace(b"c" + new + b"\n", b"c" + old + b"\n")
    assert b"_core" not in data
    return b"".join((data[:2], data[11:])) if data[2:3] == b"\x95" else data  # without the frame's length


@pytest.mark.parametrize("rename", [bytes, numpy_1])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read(name, protocol, rename):
    data = pickle.dumps({"a": ARRAYS[name], "again": [ARRAYS[name]]}, protocol)
    found, expected = loads(rename(data), "file"), pickle.loads(data)["a"]
    for each in (found["a"], found["again"][0]):
        np.testing.assert_array_equal(each, expected, strict=True)
        assert isinstance(each, np.ndarray)


@pytest.mark.parametrize("rename", [bytes, numpy_1])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [np.uint8(3), np.int64(-5), np.float32(0.5), np.True_])
def test_scalars_are_read(value, protocol, rename):
    found = loads(rename(pickle.dumps((value, value), protocol)), "file")
    assert found == (value, value)
    assert type(found[0]) is type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_read(protocol):
    value = {"a": [1, 2.5, None, True, b"\x80", b""], "b": ("text", 10**30), "c": OrderedDict(d={"e": ()})}
    assert loads(pickle.dumps(value, protocol), "file") == value


# hannotation.pickle and its masks


def rectangle(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


WHOLE, PART, STUFF = rectangle(2, 2, 15, 15), rectangle(4, 4, 8, 8), rectangle(0, 0, 20, 30)
NODE = {"children": [], "node_level": 0}


def layer(*objects):
    """A label layer as it is stored; the objects have the labels 1, 2, ..."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, mask in enumerate(objects, 1):
        labels[mask] = label
    return cv2.imencode(".png", labels)[1]


def entry(instances=2, hierarchy=None):
    default = {0: None, 1: {**NODE, "parent": 0, "node_level": 1}, 2: {**NODE, "parent": None}}
    return {"num_instance_masks": instances, "hierarchy": default if hierarchy is None else hierarchy}


def masks(layers=None, mapping=((0, 1), (1, 1), (2, 1))):
    return (layers or [layer(WHOLE), layer(PART), layer(STUFF)], list(mapping))


def write(root, table=None, content=None, *, protocol=4):
    """The layout of the field's annotation, with one image, `007`."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "images" / "007.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1])
    (root / "masks" / "007.pickle").write_bytes(
        pickle.dumps(masks() if content is None else content, protocol)
    )
    path = root / "hannotation.pickle"
    path.write_bytes(pickle.dumps({"007": entry()} if table is None else table, protocol))
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_parents_and_stuff_are_read(tmp_path, protocol):
    (record,) = read_hannotation(write(tmp_path, protocol=protocol))
    assert record.path == tmp_path / "images" / "007.jpg"
    assert record.read().shape == (HEIGHT, WIDTH, 3)
    for each, expected in zip(record.objects, (WHOLE, PART, STUFF), strict=True):
        np.testing.assert_array_equal(each.decode(), expected)
    assert [each.name for each in record.objects] == [f"007.pickle:{i}" for i in range(3)]
    assert [each.parent for each in record.objects] == [-1, 0, -1]
    assert [each.is_stuff for each in record.objects] == [False, False, True]


def test_several_objects_share_a_layer(tmp_path):
    other = rectangle(16, 20, 19, 25)
    content = masks([layer(WHOLE, other), layer(PART)], [(0, 2), (0, 1), (1, 1)])
    (record,) = read_hannotation(write(tmp_path, content=content))
    for each, expected in zip(record.objects, (other, WHOLE, PART), strict=True):
        np.testing.assert_array_equal(each.decode(), expected)


def test_an_object_without_pixels_is_left_out_and_its_parts_go_to_what_contained_it(tmp_path):
    hierarchy = {1: {"parent": 0}, 2: {"parent": 1}, 0: {"parent": 3}}
    content = masks(mapping=[(0, 9), (2, 1), (1, 1), (0, 1)])
    (record,) = read_hannotation(write(tmp_path, {"007": entry(4, hierarchy)}, content))
    assert [each.name for each in record.objects] == ["007.pickle:1", "007.pickle:2", "007.pickle:3"]
    assert [each.parent for each in record.objects] == [2, 0, -1]


def test_numpy_numbers_old_columns_and_whole_keys_are_taken(tmp_path):
    content = ([layer(WHOLE).reshape(-1, 1)], np.array([[0, 1]]))
    table = {"007": entry(np.int64(1), {np.int64(0): {"parent": None}})}
    (record,) = read_hannotation(write(tmp_path, table, content))
    np.testing.assert_array_equal(record.objects[0].decode(), WHOLE)


def test_an_image_without_masks_has_no_objects(tmp_path):
    (record,) = read_hannotation(write(tmp_path, {"007": entry(0, {})}, ([], [])))
    assert (record.height, record.width, record.objects) == (HEIGHT, WIDTH, ())


def test_images_may_lie_elsewhere_and_in_a_store(tmp_path):
    write(tmp_path)
    store = UPath("memory://hannotation")
    for name in ("images/007.jpg", "masks/007.pickle", "hannotation.pickle"):
        copy = store / name.replace("images", "train2017")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((tmp_path / name).read_bytes())
    (record,) = read_hannotation(store / "hannotation.pickle", store / "train2017")
    assert record.read().shape == (HEIGHT, WIDTH, 3)
    assert len(record.objects) == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], r"hannotation.pickle: expected a dict .*found list"),
        ({"007": []}, r"image 007: expected 'num_instance_masks' and 'hierarchy'"),
        ({"007": {"num_instance_masks": 2}}, r"image 007: expected .*KeyError\('hierarchy'\)"),
        ({"007": entry(float("inf"))}, "image 007: expected"),
        ({"007": entry(hierarchy={0: [1]})}, "image 007: expected"),
        (
            {"007": entry(hierarchy={0: {"parent": 1}, 1: {"parent": 0}})},
            r"007.pickle: object 0 contains itself",
        ),
        ({"007": entry(4)}, r"007.pickle: 3 masks, where the table has 4 instances"),
        ({"008": entry()}, r"1 of 1 images are missing, the first is .*008.jpg"),
        ({"../007": entry()}, r"image ../007: the path .* leads outside"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path, table, message):
    with pytest.raises(DataError, match=message):
        read_hannotation(write(tmp_path, table))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "expected a pair of the layers"),
        (masks(["a", "b"]), "expected a pair of the layers"),
        (masks(mapping=[(0, 1), 2]), "expected a pair of the layers"),
        (masks(mapping=[(0, 1), (3, 1)]), "object 1 lies in layer 3, of 3 layers"),
        (masks(mapping=[(0, 1), (-1, 1)]), "object 1 lies in layer -1"),
        (masks([layer(WHOLE)[:20]]), "layer 0: broken image"),
        (
            masks([layer(WHOLE), cv2.imencode(".png", np.ones((3, 4), np.uint8))[1]]),
            r"the layers have the sizes",
        ),
        (
            masks([cv2.imencode(".png", np.ones((3, 4, 3), np.uint8))[1]]),
            "layer 0: expected one label per pixel",
        ),
        (Call(os.system, "exit 1"), "refused to load"),
    ],
)
def test_malformed_masks_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"007.pickle: .*{message}|007.pickle: {message}"):
        read_hannotation(write(tmp_path, content=content))


def test_missing_masks_are_named(tmp_path):
    path = write(tmp_path)
    (tmp_path / "masks" / "007.pickle").unlink()
    with pytest.raises(DataError, match=r"007.pickle: No such file"):
        read_hannotation(path)


def test_a_table_that_runs_code_is_refused(tmp_path):
    path = write(tmp_path, {"007": Call(os.system, f"touch {tmp_path / 'marker'}")})
    with pytest.raises(DataError, match=r"hannotation.pickle: refused to load 'posix.system'"):
        read_hannotation(path)
    assert not (tmp_path / "marker").exists()

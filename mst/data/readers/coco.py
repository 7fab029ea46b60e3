"""Readers of COCO and LVIS annotation files (`instances_*.json`, `lvis_*.json`).

Such files are written by dozens of tools. One entry that is wrong is left out and told (`Records.problems`);
a file that is no COCO file at all is refused.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from upath import UPath

from mst.data.annotations import Declared, ImageRecord, ObjectAnnotation, Records, resolve_inside
from mst.data.files import fetch, names
from mst.data.pixels.images import MAX_PIXELS
from mst.data.problems import Problem
from mst.data.readers.segmentations import fault_of, shown
from mst.errors import DataError

CROWD = "crowd"
BAD_IMAGE = "malformed image entry"
BAD_ANNOTATION = "malformed annotation"
NO_IMAGE = "annotation of no image"
SHARED_ID = "image id of several images"
TWO_SIZES = "image of two sizes"
IMAGE_TWICE = "image entry twice"
ANNOTATION_TWICE = "annotation twice"
SHARED_ANNOTATION_ID = "annotation id of several objects"

_CROWD_FLAGS = (None, 0, 1)


def read_coco(annotations: UPath, images: UPath | None = None, *, crowds: bool = False) -> Records:
    """Read a COCO instances file.

    Area and box are measured of each mask, whatever the file says.

    Args:
        annotations: the JSON file, `.../annotations/instances_SPLIT.json` in COCO's own layout.
        images: the folder of the images; by default `.../SPLIT`, as COCO is laid out.
        crowds: whether what is marked `iscrowd` is taken for single objects, as CVAT marks brush masks;
            otherwise it is left out, as COCO's crowds are many objects.

    Returns:
        A record for each image, in the file's order, images without objects included; and what was left out.

    Raises:
        DataError: the file is missing, no COCO file, holds no image that can be read, or names one outside
            `images`.
    """
    split = annotations.stem.rpartition("_")[2]
    folder = images or annotations.parent.parent / split
    return _read(annotations, folder, "file_name", lambda file: file, crowds)


def read_lvis(annotations: UPath, images: UPath | None = None, *, crowds: bool = False) -> Records:
    """Read an LVIS file, v0.5 or v1, whose images are COCO's.

    An LVIS split draws images from several COCO splits, so the last two parts of an image's `coco_url`
    (`train2017/000000000009.jpg`) say where it lies.

    Args:
        annotations: the JSON file, `.../annotations/lvis_*.json`.
        images: the folder of COCO's splits; by default the parent of the folder of `annotations`.
        crowds: as `read_coco`.

    Returns:
        As `read_coco`.

    Raises:
        DataError: as `read_coco`.
    """
    folder = images or annotations.parent.parent
    return _read(annotations, folder, "coco_url", lambda url: "/".join(url.rsplit("/", 2)[-2:]), crowds)


class Key(NamedTuple):
    """What names an image in a file of annotations, and what the file says of it."""

    image_id: int | str
    path: UPath
    height: int
    width: int


def _read(
    annotations: UPath, folder: UPath, field: str, file_of: Callable[[str], str], crowds: bool
) -> Records:
    tables = load_tables(annotations)
    problems: list[Problem] = []
    keys = []
    malformed: dict[int | str, Problem] = {}  # by id, or by place where that is wrong
    for place, entry in enumerate(tables["images"]):
        name = f"{annotations.name}: image {_id_of(entry, place)}"
        wrong = _fault_of_image(entry, field)
        if wrong:
            malformed[_id_of(entry, place)] = Problem(BAD_IMAGE, name, wrong, lost=0)
        else:
            path = resolve_inside(folder, file_of(entry[field]), f"{annotations}: image {entry['id']}")
            keys.append(Key(entry["id"], path, int(entry["height"]), int(entry["width"])))
    if malformed and not keys:
        first = next(iter(malformed.values()))
        raise DataError(f"{annotations}: none of {len(malformed)} images can be read; {first}")
    named, doubtful = unique_images(keys, annotations.name)
    of_images = {image_id: key for image_id, key in named.items() if image_id not in malformed}
    faulty = malformed | doubtful
    objects = _Objects(annotations.name, of_images, frozenset(faulty), crowds, problems)
    for place, entry in enumerate(tables["annotations"]):
        objects.add(place, entry)
    problems += objects.lost_with_images(faulty.values())
    records = [
        ImageRecord(each.path, each.height, each.width, tuple(objects.by_image.get(each.image_id, ())))
        for each in of_images.values()
    ]
    return Records(records, tuple(problems))


def unique_images(keys: Iterable[Key], name: str) -> tuple[dict[int | str, Key], dict[int | str, Problem]]:
    """Tell images that an id names from ids that name several, as files have that were merged carelessly.

    Args:
        keys: of all entries.
        name: of the file.

    Returns:
        The images by id; and a problem for each id of which nobody knows what it names. Where an entry merely
        stands there again, there are both: an image and a problem.
    """
    entries: dict[int | str, list[Key]] = defaultdict(list)
    sizes: dict[UPath, set[tuple[int, int]]] = defaultdict(set)
    for key in keys:
        entries[key.image_id].append(key)
        sizes[key.path].add((key.height, key.width))
    found: dict[int | str, Key] = {}
    problems: dict[int | str, Problem] = {}
    for image_id, listed in entries.items():
        where, first = f"{name}: image {image_id}", listed[0]
        files = list(dict.fromkeys(each.path.name for each in listed))
        if len({each.path for each in listed}) > 1:
            what = f"the id is given to {', '.join(files[:3])}; give each image one of its own"
            problems[image_id] = Problem(SHARED_ID, where, what, lost=0)
        elif len(sizes[first.path]) > 1:
            said = " and ".join(f"{width} x {height}" for height, width in sorted(sizes[first.path]))
            problems[image_id] = Problem(TWO_SIZES, where, f"{files[0]} is said to be {said}", lost=0)
        else:
            found[image_id] = first
            if len(listed) > 1:
                problems[image_id] = Problem(IMAGE_TWICE, where, f"{files[0]} has {len(listed)} entries", 0)
    return found, problems


class _Objects:
    """The objects of a file's annotations, by image, as they are read one after the other.

    Args:
        file: name of the file.
        images: by id.
        faulty: ids of images that are not to be used, or whose entries are repeated.
        crowds: as `read_coco`.
        problems: what is wrong is added here.
    """

    def __init__(
        self,
        file: str,
        images: dict[int | str, Key],
        faulty: frozenset[int | str],
        crowds: bool,
        problems: list[Problem],
    ) -> None:
        self._file, self._images, self._faulty, self._crowds = file, images, faulty, crowds
        self._problems = problems
        self._seen: dict[str, list[Any]] = {}  # by name: image and segmentation of each annotation
        self._lost: dict[Any, int] = defaultdict(int)  # by id of an image that cannot be used
        self.by_image: dict[int | str, list[ObjectAnnotation]] = defaultdict(list)

    def add(self, place: int, entry: Any) -> None:
        """Read one annotation, the file's `place`-th."""
        number = _id_of(entry, place)
        name = f"{self._file}:{number}"
        wrong = _fault_of_annotation(entry)
        if wrong:
            self._problems.append(Problem(BAD_ANNOTATION, name, wrong))
            return
        key = self._images.get(entry["image_id"])
        if key is None:
            if entry["image_id"] in self._faulty:
                self._lost[entry["image_id"]] += 1
            else:
                self._problems.append(Problem(NO_IMAGE, name, f"no image has the id {entry['image_id']!r}"))
            return
        segmentation = entry.get("segmentation")
        if entry.get("iscrowd") and not self._crowds:
            what = "it is marked iscrowd, as many objects in one mask; '?crowds=objects' takes it for one"
            self._problems.append(Problem(CROWD, name, what, is_fault=False))
            return
        fault = fault_of(segmentation, key.height, key.width)
        if fault:
            self._problems.append(Problem(fault[0], name, fault[1]))
            return
        earlier = self._seen.setdefault(name, [])
        if (key.image_id, segmentation) in earlier:
            self._problems.append(Problem(ANNOTATION_TWICE, name, "it stands there again", lost=0))
            return
        earlier.append((key.image_id, segmentation))
        if len(earlier) > 1:
            what = f"object {len(earlier)} of this id; each is used"
            self._problems.append(Problem(SHARED_ANNOTATION_ID, name, what, lost=0))
            name = f"{name} ({len(earlier)})"
        self.by_image[key.image_id].append(
            ObjectAnnotation(
                segmentation=segmentation,
                height=key.height,
                width=key.width,
                name=name,
                declared=Declared(entry.get("area"), entry.get("bbox")),
            )
        )

    def lost_with_images(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return the problems of images, with the number of objects that each costs."""
        by_name = {f"{self._file}: image {image_id}": lost for image_id, lost in self._lost.items()}
        return [each._replace(lost=by_name.get(each.where, 0)) for each in problems]


def _id_of(entry: Any, place: int) -> Any:
    """What to call an entry: its id, or its place where it has none that can be used."""
    number = entry.get("id") if isinstance(entry, dict) else None
    return number if _is_id(number) and number != "" else f"#{place}"


def _is_id(value: Any) -> bool:
    """Whether a value names something; JSON's true, which Python takes for 1, would name another's."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def _fault_of_image(entry: Any, field: str) -> str | None:
    if not isinstance(entry, dict):
        return f"it is {shown(entry)}, not an object"
    missing = [name for name in ("id", field, "height", "width") if name not in entry]
    if missing:
        return f"it lacks the field '{missing[0]}'"
    if not _is_id(entry["id"]):
        return f"id is {shown(entry['id'])}, neither a whole number nor a text"
    if not isinstance(entry[field], str) or not entry[field]:
        return f"{field} is {shown(entry[field])}, not the name of a file"
    return _fault_of_size(entry["height"], entry["width"])


def _fault_of_size(height: Any, width: Any) -> str | None:
    for name, side in (("height", height), ("width", width)):
        is_number = isinstance(side, int | float) and not isinstance(side, bool)
        if not (is_number and 1 <= side <= MAX_PIXELS and int(side) == side):
            return f"{name} is {shown(side)}, not a number of pixels"
    if height * width > MAX_PIXELS:
        return f"it is {width} x {height} pixels; at most {MAX_PIXELS} are accepted"
    return None


def _fault_of_annotation(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"it is {shown(entry)}, not an object"
    if "image_id" not in entry:
        return "it lacks the field 'image_id'"
    if not _is_id(entry["image_id"]):
        return f"image_id is {shown(entry['image_id'])}, neither a whole number nor a text"
    if isinstance(entry.get("iscrowd"), str | float) or entry.get("iscrowd") not in _CROWD_FLAGS:
        return f"iscrowd is {shown(entry['iscrowd'])}, neither 0 nor 1"
    return None


def check_images(paths: Sequence[UPath], source: UPath) -> None:
    """Refuse a source whose images are missing; folders are listed, since asking a store for each is slow.

    Raises:
        DataError: the message counts what is missing and names the first.
    """
    there = {folder: names(folder) for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in there[path.parent]]
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of {len(paths)} images are missing, the first is {missing[0]}"
        )


def load_tables(annotations: UPath) -> dict[str, Any]:
    """Read the JSON of a COCO file, of which it is only sure that there are lists of images and annotations.

    Raises:
        DataError: the file is missing, no JSON, or lacks either.
    """
    try:
        tables = json.loads(fetch(annotations))
    except OSError as error:
        raise DataError(f"{annotations}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{annotations}: not a JSON file ({error})") from None
    if not isinstance(tables, dict) or not {"images", "annotations"} <= tables.keys():
        raise DataError(f"{annotations}: not a COCO file, which has 'images' and 'annotations'")
    for name in ("images", "annotations"):
        if not isinstance(tables[name], list):
            raise DataError(f"{annotations}: '{name}' is {shown(tables[name])}, not a list")
    return tables

"""Reader of Label Studio's exports (JSON): brushes and polygons."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from upath import UPath

from mst.data.annotations import Records
from mst.data.files import fetch
from mst.data.pixels.brush import decode_brush
from mst.data.problems import Problem
from mst.data.readers.folders import IMAGE_SUFFIXES
from mst.data.readers.segmentations import shown
from mst.data.readers.shapes import ImageFolder, Shape, malformed, no_mask, outlined, painted, record_of
from mst.errors import DataError

NO_TASK = "task that cannot be read"
NOT_ANNOTATED = "task without an annotation"
EARLIER = "earlier annotation of the same task"

_BRUSH, _POLYGON = "brushlabels", "polygonlabels"
_NAMED = ("choices", "textarea", "labels", "relation")  # results that draw nothing


def read_label_studio(export: UPath, images: UPath | None = None) -> Records:
    """Read an export "JSON", with the images in a folder.

    Each brush and each polygon is an object; boxes, ellipses and points are left out. Of several annotations
    of a task the last one counts, and cancelled ones do not.

    Args:
        export: the JSON file.
        images: folder of the images, by default that of the file. Uploaded ones are found by the name that
            they had, too.

    Returns:
        A record for each annotated image; and what was left out.

    Raises:
        DataError: the file is missing or no such export.
    """
    try:
        tasks = json.loads(fetch(export))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{export}: no export of Label Studio ({error})") from None
    listed = tasks if isinstance(tasks, list) else []
    if not any(isinstance(each, dict) and "annotations" in each for each in listed):
        raise DataError(
            f"{export}: no export of Label Studio: expected a list of tasks with their annotations; "
            "choose the format JSON, not JSON-MIN"
        )
    photos, records, problems = ImageFolder(images or export.parent), [], list[Problem]()
    for number, task in enumerate(listed):
        name = f"{export.name}:{task.get('id', number) if isinstance(task, dict) else number}"
        result = _result(task, name, problems)
        if result is None:
            continue
        seen = photos.look(_image_of(task), _size_of(result), len(result), problems)
        if seen is not None:
            image, height, width = seen
            records.append(record_of(image, (height, width), _shapes(result, height, width, name), problems))
    return Records(records, tuple(problems))


def _result(task: Any, name: str, problems: list[Problem]) -> list[dict[str, Any]] | None:
    """What the last annotation of a task draws; None where there is none."""
    if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
        problems.append(Problem(NO_TASK, name, "it has no list of annotations", lost=0))
        return None
    valid = [each for each in task["annotations"] if isinstance(each, dict) and not each.get("was_cancelled")]
    results = [each["result"] for each in valid if isinstance(each.get("result"), list)]
    if not results:
        problems.append(Problem(NOT_ANNOTATED, name, lost=0, is_fault=False))
        return None
    for earlier in results[:-1]:
        problems.append(Problem(EARLIER, name, lost=len(earlier), is_fault=False))
    return [each for each in results[-1] if isinstance(each, dict) and each.get("type") not in _NAMED]


def _image_of(task: Mapping[str, Any]) -> Any:
    """The address of a task's image: the first value that has the suffix of one."""
    data = task.get("data")
    values = list(data.values()) if isinstance(data, dict) else []
    texts = [each for each in values if isinstance(each, str)]
    named = [each for each in texts if each.lower().endswith(tuple(IMAGE_SUFFIXES))]
    return next(iter([*named, *texts]), None)


def _size_of(result: list[dict[str, Any]]) -> tuple[Any, Any] | None:
    sizes = [(each.get("original_height"), each.get("original_width")) for each in result]
    return next((each for each in sizes if None not in each), None)


def _shapes(result: list[dict[str, Any]], height: int, width: int, task: str) -> Iterator[Shape]:
    counts: dict[str, int] = defaultdict(int)
    for region in result:
        counts[task] += 1
        name, kind = f"{task}:{region.get('id', counts[task])}", region.get("type")
        value = region.get("value")
        if kind not in (_BRUSH, _POLYGON):
            yield no_mask(kind, name)
        elif not isinstance(value, dict):
            yield malformed(f"its value is {shown(value)}, not an object", name)
        elif kind == _POLYGON:
            yield _polygon(value, height, width, name)
        else:
            yield _brush(value, height, width, name)


def _polygon(value: Mapping[str, Any], height: int, width: int, name: str) -> Shape:
    """Points in percent of the image."""
    try:
        points = [(float(x) * width / 100, float(y) * height / 100) for x, y in value["points"]]
    except (KeyError, TypeError, ValueError) as error:
        return malformed(f"its points cannot be read ({error!r})", name)
    return outlined([[part for point in points for part in point]], height, width, name)


def _brush(value: Mapping[str, Any], height: int, width: int, name: str) -> Shape:
    try:
        return painted(decode_brush(value["rle"], height, width), name)
    except (KeyError, TypeError, ValueError) as error:
        return malformed(f"its brush cannot be read: {error}", name)

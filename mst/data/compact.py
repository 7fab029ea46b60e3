"""A data set in one small folder: smaller photos, and an index each to train and to validate on.

    python -m mst.data.compact --root ../shared/data --out data/real \\
        --hold-out coco:coco/annotations/instances_val2017.json \\
        coco:coco/annotations/instances_train2017.json \\
        'lvis:lvis/lvis_v0.5_val_subset.json?images=coco' labels:bsds

Every third image of `--hold-out` is one to validate on, by that source's objects alone; all others of all
sources, joined, are to train on. The folder is a data root of its own: `--data.root data/real --data.train
index:train --data.val index:val`.

    OUT/images/...      as they lay under the old root
    OUT/train, OUT/val  indexes
"""

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
from upath import UPath

from mst.command_line import count, parse, run
from mst.data.annotations import ImageRecord, ObjectAnnotation
from mst.data.files import as_path, size_of
from mst.data.index import relative_to, to_batch, write_index
from mst.data.join import MIN_AREA, RULES, join_records, nest
from mst.data.pixels.encode import annotate
from mst.data.pixels.images import read_file, resize
from mst.data.problems import tell
from mst.data.sources import check_sources, problems_of, read_by_part
from mst.errors import ConfigError, DataError

IMAGES, TRAIN, VAL = "images", "train", "val"

_JPEG = {".jpg", ".jpeg"}
_CHUNK = 8  # images that a process is given at once


def compact(
    sources: Sequence[str],
    hold_out: str,
    root: UPath,
    out: Path,
    *,
    every: int = 3,
    side: int = 640,
    quality: int | None = None,
    processes: int = 2,
) -> dict[str, int]:
    """Write the folder; it is there whole, or not at all.

    Args:
        sources: to train on, beside what is not held out of `hold_out`.
        hold_out: the source of which a part is for validation.
        root: that all paths start from.
        out: the folder; must not exist.
        every: one image in so many of `hold_out`, in the order of names, is held out.
        side: largest side of an image in pixels; larger ones are made smaller, with their masks.
        quality: of JPEG, 1 to 100; None copies files that are small enough as they are, and writes others
            at 95.
        processes: that write images.

    Returns:
        How many images there are to train and to validate on.

    Raises:
        ConfigError: a source's name is wrong.
        DataError: a source or an image cannot be read, or `out` exists or cannot be written.
    """
    if out.exists():
        raise DataError(f"{out} exists already; remove it, or give another folder")
    parts = split(sources, hold_out, root, every)
    staged = out.with_name(f"{out.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    about = {"sources": [{"source": each} for each in (hold_out, *sources)], "rules": RULES}
    work = partial(write_small, root=root, out=UPath(staged), side=side, quality=quality)
    counts: dict[str, int] = {}
    try:
        with ProcessPoolExecutor(processes) as pool:
            for name, records in parts.items():
                written = [each for each in pool.map(work, records, chunksize=_CHUNK) if each.objects]
                write_index(staged / name, [to_batch(written, UPath(staged))], about | {"split": name})
                counts[name] = len(written)
        staged.rename(out)
    except OSError as error:
        raise DataError(f"{out}: could not be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return counts


def split(sources: Sequence[str], hold_out: str, root: UPath, every: int) -> dict[str, list[ImageRecord]]:
    """Return what to train and what to validate on; no image is in both, and all have objects.

    Raises:
        ConfigError, DataError: as `compact`.
    """
    source = check_sources([hold_out], root)
    if source[0].format == "panoptic":
        raise ConfigError(f"'{hold_out}' has no objects to validate on: hold out one that is not stuff")
    held = sorted(join_records(**read_by_part(source)), key=lambda each: str(each.path))[::every]
    paths = {str(each.path) for each in held}
    parts = read_by_part([*source, *check_sources(sources, root)])
    joined = join_records(**parts)
    tell([*problems_of(parts), *joined.problems], ", ".join((hold_out, *sources)))
    rest = [each for each in joined if str(each.path) not in paths]
    return {TRAIN: list(_with_objects(rest)), VAL: list(_with_objects(held))}


def _with_objects(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    return (each for each in records if each.objects)


def write_small(record: ImageRecord, root: UPath, out: UPath, side: int, quality: int | None) -> ImageRecord:
    """Write an image into a data root, and return what is known of it there.

    Args:
        record: of the image.
        root: that its path starts from.
        out: the new data root.
        side: largest side in pixels; a larger image is made smaller, with its masks.
        quality: of JPEG, 1 to 100; None copies a file that is small enough as it is, and writes others at 95.

    Raises:
        ImageError, SizeError: the image is missing, broken, or not of the annotated size.
        DataError: it lies outside `root`.
    """
    path = out / IMAGES / relative_to(record.path, root)
    height, width = (
        max(1, round(each * min(1, side / max(record.height, record.width))))
        for each in (record.height, record.width)
    )
    Path(str(path.parent)).mkdir(parents=True, exist_ok=True)
    image = record.read()  # whatever is broken is so now, and not in a training
    if (height, width) == (record.height, record.width) and quality is None:
        path.write_bytes(read_file(record.path))
        return replace(record, path=path, objects=tuple(nest(record.objects)))
    bgr = cv2.cvtColor(resize(image, height, width), cv2.COLOR_RGB2BGR)
    if path.suffix not in _JPEG:
        path = path.with_name(f"{path.name}.jpg")
    path.write_bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality or 95])[1].tobytes())
    objects = nest([small for each in record.objects for small in _smaller(each, height, width)])
    return ImageRecord(path, height, width, tuple(objects))


def _smaller(annotation: ObjectAnnotation, height: int, width: int) -> Iterator[ObjectAnnotation]:
    """The object in an image of another size, if enough of it is left there."""
    mask = resize(annotation.decode().astype("uint8") * 255, height, width) > 127
    if mask.sum() >= MIN_AREA:
        yield replace(annotate(mask, annotation.name), is_stuff=annotation.is_stuff)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which data are made small, to a parser."""
    parser.add_argument("sources", nargs="+", help="FORMAT:PATH, as mst.data.sources says")
    parser.add_argument("--hold-out", required=True, help="the source of which a part is for validation")
    parser.add_argument("--root", default=".", help="folder that paths start from")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mst.data.compact",
        description="Make a small data root with a part to train on and one to validate on.",
        allow_abbrev=False,
    )
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--every", type=count, default=3, help="hold out one image of so many")
    parser.add_argument("--side", type=count, default=640, help="largest side of an image, in pixels")
    parser.add_argument("--quality", type=count, help="JPEG quality; without it, files that fit are copied")
    parser.add_argument("--processes", type=count, default=2, help="processes that write images")
    given = parse(parser, None)
    options = {name: getattr(given, name) for name in ("every", "side", "quality", "processes")}
    counts = compact(given.sources, given.hold_out, as_path(given.root), given.out, **options)
    size = size_of(given.out) / 2**20
    print(f"{given.out}: {counts[TRAIN]} images to train on, {counts[VAL]} to validate on, {size:.1f} MiB")


if __name__ == "__main__":
    run(main)

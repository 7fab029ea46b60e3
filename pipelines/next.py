"""Say which photos to annotate next: those that a model is least sure of come first.

    python pipelines/next.py --images photos --out next.csv
    python pipelines/next.py --images photos --annotated coco:leaves.json?images=photos --points 16

The model is asked about some clicks on each photo: what IoU it expects of its own masks, and whether a closer
look says what the first one said. What helps most differs from set to set; this is better than any order by
chance where the model's doubts are right (docs/adapting.md).
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import track
from upath import UPath

from mst.checkpoint import load_model
from mst.command_line import count, parse, run
from mst.data.files import as_path, written_whole
from mst.data.index import relative_to
from mst.data.pixels.images import read_image
from mst.data.readers.folders import list_files
from mst.data.sources import read_records
from mst.errors import DataError, ImageError
from pipelines.adaptation.adapt import CHAMPION_ADDRESS
from pipelines.adaptation.order import Doubt, Doubts, ordered
from pipelines.registry.versions import checkpoint_of

_COLUMNS = ("image", "doubt", "expected_iou", "agreement")


def unlabelled(images: UPath, annotated: Sequence[str]) -> list[UPath]:
    """Return the images of a folder that none of some sources has objects on.

    Raises:
        DataError: there is none, or a source cannot be read.
    """
    there = list(list_files(images).files.values())
    records = read_records(annotated, UPath(Path.cwd())) if annotated else ()
    done = {Path(str(each.path)).resolve() for each in records if each.objects}
    left = [each for each in there if Path(str(each)).resolve() not in done]
    if not left:
        raise DataError(f"{images}: {len(there)} images, and all of them are annotated")
    return left


def write(file: TextIO, images: Sequence[str], doubts: Sequence[Doubt]) -> None:
    """Write the order as CSV."""
    lines = csv.writer(file)
    lines.writerow(_COLUMNS)
    for place in ordered(doubts):
        each = doubts[place]
        figures = (each.rank, each.expected_iou, each.agreement)
        lines.writerow([images[place], *(f"{figure:.4f}" for figure in figures)])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Say which photos to annotate next.", allow_abbrev=False)
    parser.add_argument("--images", required=True, help="folder of photos")
    parser.add_argument(
        "--annotated", nargs="+", default=(), metavar="SOURCE", help="what is annotated already, and left out"
    )
    parser.add_argument(
        "--model",
        default=CHAMPION_ADDRESS,
        help="checkpoint folder or models:/NAME@ALIAS",
    )
    parser.add_argument("--points", type=count, default=9, help="clicks that it is asked about on each photo")
    parser.add_argument("--out", type=Path, help="CSV file to write (default: the terminal)")
    arguments = parse(parser, None)
    folder = as_path(arguments.images)
    images = unlabelled(folder, arguments.annotated)
    with tempfile.TemporaryDirectory() as scratch:
        model, config = load_model(checkpoint_of(arguments.model, Path(scratch)))
    asked = Doubts(model, config.eval, arguments.points)
    names, doubts = [], []
    for path in track(images, "looking", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        try:
            doubts.append(asked.of(read_image(path)))
        except ImageError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        names.append(relative_to(path, folder))
    if arguments.out is None:
        write(sys.stdout, names, doubts)
        return
    with written_whole(arguments.out) as part, part.open("w", newline="") as file:
        write(file, names, doubts)
    print(f"{arguments.out}: {len(names)} photos, the first is {names[ordered(doubts)[0]]}")


if __name__ == "__main__":
    run(main)

"""Whether a model was trained on photos that it is measured on: pairs of photos that look alike.

    python -m benchmarks.studies.overlap --trained-on 'index:data/real/train?images=data/real' \\
        --data grabcut:../shared/data/grabcut

Photos are compared by the correlation of their grey thumbnails, one of each pair in all eight positions
(turned, mirrored): a photo that was scaled, compressed anew or stored turned is found, with 0.98 or more, a
part of it is not. The nearest pairs are printed; exit status 3 where one correlates by more than `--most`.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from upath import UPath

from mst.command_line import count, parse, run
from mst.data.pixels.images import RGB
from mst.data.sources import read_records, read_samples

SIDE = 24
"""Of a thumbnail, in pixels."""
FOUND = 3
"""Exit status."""


def thumbnail(image: RGB) -> NDArray[np.float64]:
    """Return an image (H, W, 3) as (SIDE, SIDE) shades of grey, of mean 0 and length 1."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    centred = grey.astype(np.float64) - grey.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-9))


def likeness(ones: Iterable[RGB], others: Iterable[RGB]) -> NDArray[np.float64]:
    """Return the correlation of each of `ones` with each of `others`, in its best position: -1 .. 1."""
    theirs = np.stack([thumbnail(each).ravel() for each in others])
    found = []
    for each in map(thumbnail, ones):
        positions = [np.rot90(flipped, turns) for flipped in (each, each[:, ::-1]) for turns in range(4)]
        found.append((np.stack([one.ravel() for one in positions]) @ theirs.T).max(0))
    return np.stack(found)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--trained-on", nargs="+", required=True, metavar="SOURCE")
    parser.add_argument("--data", nargs="+", required=True, metavar="SOURCE", help="what it is measured on")
    parser.add_argument("--most", type=float, default=0.95, help="correlation that is no chance")
    parser.add_argument("--show", type=count, default=5, help="nearest pairs to print")
    arguments = parse(parser, None)
    root = UPath(Path.cwd())
    seen = {str(each.path): each for each in read_records(arguments.trained_on, root)}
    tests = {each.image.tobytes(): (each.name, each.image) for each in read_samples(arguments.data, root)}
    names = [name for name, _ in tests.values()]
    found = likeness((image for _, image in tests.values()), (each.read() for each in seen.values()))
    nearest = np.column_stack(np.unravel_index(np.argsort(-found, axis=None), found.shape))
    for test, trained in nearest[: arguments.show]:
        print(f"{found[test, trained]:.3f}  {names[test]}  {list(seen)[trained]}")
    above = int((found > arguments.most).sum())
    print(f"{above} of {found.size} pairs ({len(names)} x {len(seen)} photos) above {arguments.most:g}")
    sys.exit(FOUND if above else 0)


if __name__ == "__main__":
    run(main)

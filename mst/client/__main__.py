"""Click on an image from the shell, and write the mask over it.

python -m mst.client photo.jpg --click 120,80 --negative 30,40
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from mst.clicks import Click, check_clicks
from mst.client.http import Client
from mst.client.retry import Retry
from mst.command_line import run
from mst.data.files import check_file_writable, written_whole
from mst.data.pixels.arrays import read_bytes
from mst.data.pixels.images import check_suffix, decode_image, encode_image
from mst.drawing import draw_clicks, overlay


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        MSTError: the file is no image, the result cannot be written, or the server refused it or could not be
            reached.
    """
    parser = argparse.ArgumentParser(
        description="Click on an image; write the mask over it.", allow_abbrev=False
    )
    parser.add_argument("image", type=Path, help="an image file")
    parser.add_argument(
        "--click", dest="clicks", action="append", type=_positive, metavar="X,Y", required=True
    )
    parser.add_argument("--negative", dest="clicks", action="append", type=_negative, metavar="X,Y")
    parser.add_argument("--out", type=Path, help="png, jpg, webp, ... (default IMAGE_mask.png)")
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="address of the server (default %(default)s)"
    )
    parser.add_argument("--api-key", default=os.environ.get("MST_API_KEY"), help="default: $MST_API_KEY")
    parser.add_argument(
        "--patience", type=_seconds, default=30.0, help="seconds to try again (default %(default)s)"
    )
    given = parser.parse_args(argv)
    out = given.out or given.image.with_name(f"{given.image.stem}_mask.png")
    check_suffix(out.suffix)
    data = read_bytes(given.image)
    image = decode_image(data, name=str(given.image))
    check_clicks(given.clicks, *image.shape[:2])  # as the client will, but before a folder is made
    check_file_writable(out)  # or the server would be asked in vain
    with Client(given.url, api_key=given.api_key, retry=Retry(given.patience)) as client:
        answer = client.segment(data, given.clicks)
    drawn = encode_image(draw_clicks(overlay(image, answer.mask), given.clicks, scale=1), out.suffix)
    with written_whole(out) as writing:
        writing.write_bytes(drawn)
    print(f"{out}: {answer.mask.mean():.1%} of the image, expected IoU {answer.score:.2f}, {answer.model}")  # noqa: T201


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return seconds


def _positive(text: str) -> Click:
    return _click(text, is_positive=True)


def _negative(text: str) -> Click:
    return _click(text, is_positive=False)


def _click(text: str, *, is_positive: bool) -> Click:
    try:
        col, row = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not X,Y in pixels, as in 120,80") from None
    return Click(row, col, is_positive)


if __name__ == "__main__":
    run(main)

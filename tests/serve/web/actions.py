"""What a person does on the page, and what the server would answer."""

import json
from pathlib import Path

import cv2
import httpx
import numpy as np
from pycocotools import mask as coco_mask

from mst.clicks import Click
from mst.client import Client
from tests.conftest import picture, png

HEIGHT, WIDTH = 90, 140
CLICKS = [Click(20, 30, True), Click(70, 100, False)]


def opened(page, tmp_path: Path):
    (tmp_path / "image.png").write_bytes(png(picture()))
    page.set_input_files("#file", tmp_path / "image.png")
    status(page, "click on an object")
    return page


def status(page, text: str) -> None:
    from playwright.sync_api import expect  # noqa: PLC0415

    expect(page.locator("#status")).to_contain_text(text)


def place(page, x: float, y: float) -> tuple[float, float]:
    """Where the centre of a pixel of the image is in the window."""
    return tuple(
        page.evaluate(
            """async ([x, y]) => {
                const { view, canvas } = (await import(new URL("web/app.js", document.baseURI))).editor;
                const box = canvas.getBoundingClientRect();
                const [left, top] = [box.left + view.left, box.top + view.top];
                return [left + (x + 0.5) * view.scale, top + (y + 0.5) * view.scale];
            }""",
            [x, y],
        )
    )


def click(page, x: int, y: int, button: str = "left") -> None:
    page.mouse.click(*place(page, x, y), button=button)


def drag(page, start, end, button: str = "left") -> None:
    page.mouse.move(*place(page, *start))
    page.mouse.down(button=button)
    page.mouse.move(*place(page, (start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
    page.mouse.move(*place(page, *end))
    page.mouse.up(button=button)


def saved(page, tmp_path: Path, button: str = "#save-png"):
    with page.expect_download() as download:
        page.click(button)
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) == 255


def expected(local: str, clicks=(), **more) -> np.ndarray:
    """The server's mask."""
    sent = [{"x": each.col, "y": each.row, "is_positive": each.is_positive} for each in clicks]
    image_id = Client(local).upload(png(picture()))
    reply = httpx.post(f"{local}/v1/images/{image_id}/mask", json={"clicks": sent, **more})
    return coco_mask.decode(reply.json()["mask"]).astype(bool)

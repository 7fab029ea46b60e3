"""A person's clicks on the page, in a real browser: `make test-page`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mst.clicks import Click
from mst.client import Client
from tests.conftest import picture, png

pytestmark = pytest.mark.browser


@pytest.fixture
def page(server) -> Iterator:
    """The page, open; an error in its script fails the test."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    chromium = shutil.which("chromium")
    assert chromium, "this test needs Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 700}, accept_downloads=True)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server)
        yield page
        browser.close()
    assert not errors


def click(page, x: int, y: int, button: str = "left") -> None:
    """Click on the centre of a pixel of the image, and wait for the answer."""
    box = page.locator("canvas").bounding_box()
    scale = box["width"] / page.locator("canvas").evaluate("canvas => canvas.width")
    position = {"x": (x + 0.5) * scale, "y": (y + 0.5) * scale}
    with page.expect_response("**/mask"):
        page.locator("canvas").click(position=position, button=button)


def saved_mask(page, tmp_path: Path):
    with page.expect_download() as download:
        page.click("text=Save mask")
    download.value.save_as(tmp_path / "mask.png")
    return cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_GRAYSCALE)


def wait_for_clicks(page, count: str) -> None:
    page.wait_for_function(f"document.getElementById('status').textContent.startsWith('{count} ·')")


def test_a_person_opens_an_image_clicks_undoes_and_saves(page, server, tmp_path):
    (tmp_path / "image.png").write_bytes(png(picture()))
    page.set_input_files("#file", tmp_path / "image.png")
    page.wait_for_selector("canvas:visible")
    client, clicks = Client(server), [Click(20, 30, True), Click(70, 100, False)]
    image_id = client.upload(picture())

    click(page, 30, 20)
    wait_for_clicks(page, "1 click")
    click(page, 100, 70, button="right")
    wait_for_clicks(page, "2 clicks")
    expected = client.mask(image_id, clicks).mask
    np.testing.assert_array_equal(saved_mask(page, tmp_path) == 255, expected)

    page.keyboard.press("Control+z")
    wait_for_clicks(page, "1 click")
    expected = client.mask(image_id, clicks[:1]).mask
    np.testing.assert_array_equal(saved_mask(page, tmp_path) == 255, expected)

    page.click("text=Clear")
    assert page.locator("#status").inner_text() == "click on an object"
    assert page.locator("text=Save mask").is_disabled()


def test_what_is_no_image_is_said_so(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#status.error")
    assert page.locator("#status").inner_text()

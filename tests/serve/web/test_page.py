"""A person annotates on the page, in a real browser: `make test-page`."""

import base64

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mst.clicks import Click
from tests.conftest import picture, png
from tests.serve.web.actions import CLICKS, HEIGHT, WIDTH, click, drag, expected, opened, place, saved, status

pytestmark = pytest.mark.browser


def test_a_person_opens_an_image_clicks_undoes_and_saves(page, local, tmp_path):
    click(page, 30, 20)
    status(page, "1 click · expected IoU")
    assert page.locator("#latency").inner_text().endswith(" ms")
    assert page.locator("#model").inner_text().endswith("/random")
    click(page, 100, 70, button="right")
    status(page, "2 clicks")
    assert 0.02 < expected(local, CLICKS).mean() < 0.98
    np.testing.assert_array_equal(saved(page, tmp_path), expected(local, CLICKS))
    assert (tmp_path / "image_object_1.png").exists()

    page.keyboard.press("Control+z")
    status(page, "1 click")
    np.testing.assert_array_equal(saved(page, tmp_path), expected(local, CLICKS[:1]))
    page.keyboard.press("Control+Shift+z")
    status(page, "2 clicks")
    np.testing.assert_array_equal(saved(page, tmp_path), expected(local, CLICKS))

    page.click("#clear")
    status(page, "click on an object")
    assert page.locator("#save-png").is_disabled()
    page.keyboard.press("Control+z")
    status(page, "2 clicks")


def test_several_named_objects_become_coco(page, local, tmp_path):
    click(page, 30, 20)
    status(page, "1 click")
    page.locator("#objects input").fill("cat")
    page.keyboard.press("Enter")
    page.keyboard.press("n")
    status(page, "click on an object")
    drag(page, (60, 30), (120, 80))
    status(page, "a box · expected IoU")
    click(page, 100, 70, button="right")
    status(page, "a box and 1 click")

    coco = saved(page, tmp_path, "#save-coco")
    (image,) = coco["images"]
    assert (image["file_name"], image["width"], image["height"]) == ("image.png", WIDTH, HEIGHT)
    assert [each["name"] for each in coco["categories"]] == ["cat", "object 2"]
    masks = [
        expected(local, CLICKS[:1]),
        expected(local, [Click(70, 100, False)], box=[60, 30, 121, 81]),
    ]
    for number, (entry, mask) in enumerate(zip(coco["annotations"], masks, strict=True)):
        rle = coco_mask.frPyObjects(entry["segmentation"], HEIGHT, WIDTH)
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)
        assert entry["area"] == coco_mask.area(rle) == mask.sum()
        assert entry["bbox"] == coco_mask.toBbox(rle).tolist()
        assert entry["category_id"] == number + 1
        assert 0 < entry["score"] < 1

    page.keyboard.press("1")
    np.testing.assert_array_equal(saved(page, tmp_path), masks[0])
    page.keyboard.press("Delete")
    page.wait_for_selector("#objects li:only-child")
    page.keyboard.press("Control+z")
    page.wait_for_selector("#objects li:nth-child(2)")


def test_a_mask_is_corrected(page, local, tmp_path):
    prior = np.zeros((HEIGHT, WIDTH), np.uint8)
    prior[10:60, 20:90] = 255
    cv2.imwrite(str(tmp_path / "prior.png"), prior)
    page.set_input_files("#prior", tmp_path / "prior.png")
    status(page, "click where the mask is wrong")
    np.testing.assert_array_equal(saved(page, tmp_path), prior == 255)
    click(page, 30, 20, button="right")
    status(page, "a mask and 1 click")
    sent = base64.b64encode((tmp_path / "prior.png").read_bytes()).decode()
    answer = expected(local, [Click(20, 30, False)], prior=sent)
    np.testing.assert_array_equal(saved(page, tmp_path), answer)

    cv2.imwrite(str(tmp_path / "small.png"), prior[:50])
    page.set_input_files("#prior", tmp_path / "small.png")
    status(page, f"it must be a PNG of {WIDTH}")


def test_a_click_hits_its_pixel_wherever_the_image_was_moved(page, local, tmp_path):
    page.mouse.move(*place(page, 30, 20))
    for _ in range(6):
        page.mouse.wheel(0, -200)
    drag(page, (30, 22), (35, 25), button="middle")
    page.keyboard.press("ArrowRight")
    scale = page.evaluate("async () => (await import('/web/app.js')).editor.view.scale")
    assert scale > 20
    click(page, 30, 20)
    status(page, "1 click")
    np.testing.assert_array_equal(saved(page, tmp_path), expected(local, CLICKS[:1]))
    page.keyboard.press("0")
    page.mouse.click(*place(page, -2, -2))  # beside the image
    click(page, 100, 70, button="right")
    status(page, "2 clicks")
    np.testing.assert_array_equal(saved(page, tmp_path), expected(local, CLICKS))


def test_the_tokens_of_the_last_click_are_shown(page):
    click(page, 30, 20)
    status(page, "1 click")
    before = page.locator("#canvas").screenshot()
    page.keyboard.press("t")
    page.wait_for_selector("#legend li")
    assert page.locator("#legend li").count() == 1  # one fusion stage
    text = page.locator("#legend li").inner_text()
    assert text.startswith("stage 1: ")
    assert text.endswith((" tokens of 4 px", " tokens of 14 px"))
    shown = page.locator("#canvas").screenshot()
    assert shown != before
    page.keyboard.press("t")
    page.wait_for_selector("#legend", state="hidden")


def test_opacity_is_a_matter_of_taste(page):
    click(page, 30, 20)
    status(page, "1 click")
    views = []
    for _ in range(2):
        for _ in range(5):
            page.keyboard.press("]")
        page.wait_for_timeout(100)
        views.append(page.locator("#canvas").screenshot())
        for _ in range(10):
            page.keyboard.press("[")
    assert page.locator("#opacity").input_value() == "0"
    page.wait_for_timeout(100)
    assert page.locator("#canvas").screenshot() not in views


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(visit, way):
    page = visit()
    page.evaluate(
        """([way, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            const event = way === "drop"
                ? new DragEvent("drop", { ...options, dataTransfer: transfer })
                : new ClipboardEvent("paste", { ...options, clipboardData: transfer });
            document.body.dispatchEvent(event);
        }""",
        [way, base64.b64encode(png(picture())).decode()],
    )
    status(page, "click on an object")
    click(page, 30, 20)
    status(page, "1 click")


def test_a_phone(visit, browser, local, tmp_path):
    page = opened(visit(**browser.phone), tmp_path)
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    page.touchscreen.tap(*place(page, 30, 20))
    status(page, "1 click")
    page.tap("#modes .no")
    page.touchscreen.tap(*place(page, 100, 70))
    status(page, "2 clicks")
    np.testing.assert_array_equal(saved(page, tmp_path), expected(local, CLICKS))

    (x, y), session = place(page, 70, 45), page.context.new_cdp_session(page)
    before = page.evaluate("async () => (await import('/web/app.js')).editor.view.scale")
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 80), ("touchEnd", None)):
        points = [{"x": x - apart, "y": y}, {"x": x + apart, "y": y}] if apart else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    after = page.evaluate("async () => (await import('/web/app.js')).editor.view.scale")
    assert after > 2 * before
    status(page, "2 clicks")  # two fingers are no tap
    page.tap("#modes .yes")
    page.tap("#fit")
    page.touchscreen.tap(*place(page, 60, 60))
    status(page, "3 clicks")

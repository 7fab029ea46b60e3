"""A person's clicks on the page, in a real browser: `make test-page`."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
import skimage.data
from pycocotools import mask as coco_mask

from mst.clicks import Click
from mst.client import Client
from serve.inference.registry import SHIPPED
from serve.settings import ServeSettings
from tests.conftest import listening, local_api, picture, png
from tests.prefix_proxy import behind_prefix

pytestmark = pytest.mark.browser

HEIGHT, WIDTH = 90, 140
CLICKS = [Click(20, 30, True), Click(70, 100, False)]
FLAGS = "--no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    chromium = shutil.which("chromium")
    assert chromium, "this test needs Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        browser.phone = {**playwright.devices["iPhone 13"]}
        browser.phone.pop("default_browser_type", None)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, local) -> Iterator:
    """Opens the page; an error in a script, or a request to elsewhere, fails the test."""
    errors, contexts = [], []

    def visit(url=local, expected_errors=False, **options):
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 700}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        if not expected_errors:
            page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda sent: sent.url.startswith((url, "blob:")) or errors.append(sent.url))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def page(visit, tmp_path):
    """The page with an image on it."""
    return opened(visit(), tmp_path)


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


@pytest.mark.parametrize("strips", [True, False], ids=["prefix taken away", "prefix left"])
def test_the_page_works_below_a_prefix(visit, checkpoint, local, tmp_path, strips):
    settings = ServeSettings(
        model=str(checkpoint),
        image_store=str(tmp_path / "images"),
        precision="fp32",
        max_bytes=400_000,
        root_path="" if strips else "/tools/mst",
    )
    with listening(local_api(settings)) as url, behind_prefix(url, "/tools/mst", strips=strips) as shown:
        page = visit(shown)
        page.click("#example")
        status(page, "click on an object")
        opened(page, tmp_path)
        click(page, 30, 20)
        status(page, "IoU")
        mask = saved(page, tmp_path)
    np.testing.assert_array_equal(mask, expected(local, [Click(20, 30, True)]))


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


def test_a_newcomers_photo_gets_a_good_mask(visit, tmp_path):
    """By the model that ships: a photo that it has never seen, the suit, then the face."""
    (tmp_path / "photo.png").write_bytes(png(skimage.data.astronaut()))
    settings = ServeSettings(model=str(SHIPPED), image_store=str(tmp_path / "images"))
    with listening(local_api(settings)) as url:
        page = visit(url)
        page.set_input_files("#file", tmp_path / "photo.png")
        status(page, "click on an object")
        click(page, 230, 350)
        status(page, "1 click")
        click(page, 215, 100)
        status(page, "2 clicks")
        assert page.locator("#model").inner_text().endswith("mst_small")
        mask = saved(page, tmp_path)
    suit, face, corner = (slice(250, 450), slice(150, 300)), (slice(80, 130), slice(195, 235)), slice(0, 100)
    assert min(mask[suit].mean(), mask[face].mean()) > 0.9
    assert mask[corner, corner].mean() < 0.1


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


def test_the_example_can_be_clicked_on_at_once(visit):
    page = visit(expected_errors=True)  # it has more pixels than the tests' server takes
    page.click("#example")
    status(page, "at most 200000 are accepted")


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


def test_what_is_no_image_is_said_so(visit, tmp_path):
    page = visit()
    (tmp_path / "notes.txt").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#status.error")
    status(page, "notes.txt is no image")


def test_a_server_that_is_away_for_a_moment_costs_nothing_but_time(visit, local, tmp_path):
    page, failures = opened(visit(expected_errors=True), tmp_path), [503, "abort", 429]

    def fail(route):
        failure = failures.pop()
        if failure == "abort":
            route.abort()
        else:
            route.fulfill(status=failure, headers={"Retry-After": "1"}, body="{}")

    page.route("**/mask", lambda route: fail(route) if failures else route.continue_())
    click(page, 30, 20)
    status(page, "trying again")
    status(page, "1 click")
    np.testing.assert_array_equal(saved(page, tmp_path), expected(local, CLICKS[:1]))

    failures.append(404)  # the image was swept away: it is sent again
    with page.expect_request("**/v1/images"):
        click(page, 100, 70, button="right")
    status(page, "2 clicks")


def test_the_key_is_asked_for_once(visit, checkpoint, tmp_path):
    key, store = "a-key-of-24-characters--", str(tmp_path / "images")
    settings = ServeSettings(model=str(checkpoint), image_store=store, precision="fp32")
    with listening(local_api(settings, key)) as url:
        page = visit(url, expected_errors=True)
        (tmp_path / "image.png").write_bytes(png(picture()))
        page.set_input_files("#file", tmp_path / "image.png")
        page.fill("#key", "a wrong one")
        page.keyboard.press("Enter")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        status(page, "click on an object")
        click(page, 30, 20)
        status(page, "1 click")
        page.reload()
        opened(page, tmp_path)  # it is not asked again


def test_the_page_needs_nothing_from_elsewhere(local):
    page = httpx.get(local)
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "style=" not in page.text
    assert "http" not in page.text

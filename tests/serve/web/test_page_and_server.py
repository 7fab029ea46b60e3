"""The page and its server, in a real browser: prefixes, keys, outages, refusals, the model that ships."""

import httpx
import numpy as np
import pytest
import skimage.data
from upath import UPath

from mst.clicks import Click
from mst.data.sources import parse_source
from serve.inference.registry import SHIPPED
from serve.settings import ServeSettings
from tests.conftest import listening, local_api, picture, png
from tests.prefix_proxy import behind_prefix
from tests.serve.web.actions import CLICKS, click, expected, opened, saved, status

pytestmark = pytest.mark.browser


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


def test_a_newcomers_photo_gets_a_first_mask_at_once_and_then_a_good_one(visit, tmp_path):
    """By the model that ships: a photo that it has never seen, the suit, then the face."""
    held = []

    def hold_the_first_answer(route):
        if held or route.request.post_data_json["first_look"]:
            route.continue_()
        else:
            held.append(route)

    (tmp_path / "photo.png").write_bytes(png(skimage.data.astronaut()))
    settings = ServeSettings(model=str(SHIPPED), image_store=str(tmp_path / "images"))
    with listening(local_api(settings)) as url:
        page = visit(url)
        page.set_input_files("#file", tmp_path / "photo.png")
        status(page, "click on an object")
        page.route("**/mask", hold_the_first_answer)
        click(page, 230, 350)
        status(page, "looking closer")
        first = saved(page, tmp_path)
        held[0].continue_()
        status(page, "1 click")
        assert (saved(page, tmp_path) != first).any()
        click(page, 215, 100)
        status(page, "2 clicks")
        assert page.locator("#model").inner_text().endswith("mst_small")
        mask = saved(page, tmp_path)
    suit, face, corner = (slice(250, 450), slice(150, 300)), (slice(80, 130), slice(195, 235)), slice(0, 100)
    assert min(mask[suit].mean(), mask[face].mean(), first[suit].mean()) > 0.9
    assert mask[corner, corner].mean() < 0.1


def test_masks_that_a_person_accepts_are_kept_where_the_server_keeps_them(visit, checkpoint, local, tmp_path):
    settings = ServeSettings(
        model=str(checkpoint),
        image_store=str(tmp_path / "images"),
        annotation_store=str(tmp_path / "annotations"),
        precision="fp32",
    )
    assert opened(visit(), tmp_path).locator("#accept").is_hidden()  # this one keeps none
    with listening(local_api(settings)) as url:
        page = opened(visit(url), tmp_path)
        assert page.locator("#accept").is_disabled()
        click(page, 30, 20)
        status(page, "1 click")
        page.locator("#objects input").fill("cat")
        page.keyboard.press("Enter")
        page.click("#accept")
        status(page, "1 mask is kept")
        assert page.locator("#accept").is_disabled()
        click(page, 100, 70, button="right")
        status(page, "2 clicks")
        page.keyboard.press("d")
        status(page, "1 mask is kept")
    (record,) = parse_source("accepted:annotations", UPath(tmp_path)).read()
    np.testing.assert_array_equal(record.objects[0].decode(), expected(local, CLICKS))
    assert len(record.objects) == 1  # the corrected mask is in the place of the first


def test_the_example_can_be_clicked_on_at_once(visit):
    page = visit(expected_errors=True)  # it has more pixels than the tests' server takes
    page.click("#example")
    status(page, "at most 200000 are accepted")


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
        assert page.locator("#refused").is_hidden()
        page.fill("#key", "a wrong one")
        page.keyboard.press("Enter")
        page.wait_for_selector("#refused:visible")
        assert page.evaluate("sessionStorage.getItem('key')") is None
        page.fill("#key", key)
        page.keyboard.press("Enter")
        status(page, "click on an object")
        click(page, 30, 20)
        status(page, "1 click")
        page.reload()
        opened(page, tmp_path)  # it is not asked again


def test_the_docs_are_shown_with_a_key_and_need_nothing_from_elsewhere(visit, checkpoint, tmp_path):
    key = "a-key-of-24-characters--"
    settings = ServeSettings(model=str(checkpoint), image_store=str(tmp_path / "images"), precision="fp32")
    with listening(local_api(settings, key)) as url:
        # What is refused first, the browser asks for again with the key.
        page = visit(url, expected_errors=True, http_credentials={"username": "anybody", "password": key})
        page.goto(f"{url}/docs")
        page.wait_for_selector("#operations-default-segment_v1_segment_post")
        page.screenshot(path=str(tmp_path / "docs.png"))


def test_the_page_needs_nothing_from_elsewhere(local):
    page = httpx.get(local)
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "style=" not in page.text
    assert "http" not in page.text

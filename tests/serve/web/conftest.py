"""A real browser, and the page in it."""

import shutil
from collections.abc import Iterator

import pytest

from tests.serve.web.actions import opened

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

"""A person accepts masks on the page and has the model adapt: a real registry, and a real job on Ray."""

import pytest

from serve.settings import ServeSettings
from tests.conftest import listening, local_api, picture, png
from tests.serve.web.actions import click, status

pytestmark = pytest.mark.browser


def test_masks_of_six_photos_adapt_the_model_and_the_gate_decides(visit, late_champion, checkpoint, tmp_path):
    from playwright.sync_api import expect  # noqa: PLC0415

    settings = ServeSettings(
        model=str(checkpoint),
        image_store=str(tmp_path / "images"),
        annotation_store=str(tmp_path / "annotations"),
        adapt_runs=str(tmp_path / "adapted"),
        precision="fp32",
    )
    with listening(local_api(settings)) as url:
        page = visit(url)
        for number in range(6):
            (tmp_path / f"{number}.png").write_bytes(png(picture(number)))
            page.set_input_files("#file", tmp_path / f"{number}.png")
            status(page, "click on an object")
            click(page, 30, 20)
            status(page, "1 click")
            page.click("#accept")
            status(page, "1 mask is kept")
        page.click("#adapt")
        status(page, "adapting")
        assert page.locator("#adapt").is_disabled()
        expect(page.locator("#status")).to_have_text("the model stays as it was", timeout=400_000)
        said = page.locator("#adaptation").inner_text()
        assert page.locator("#adapt").is_enabled()
    assert "your photos: " in said
    assert "3 photos" in said
    assert "not promoted" in said

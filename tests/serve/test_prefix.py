"""The server below a prefix: behind a proxy that takes the prefix away, and behind one that leaves it."""

import re

import httpx
import pytest

from mst.client import Client
from serve.settings import ROUTES, ServeSettings
from tests.conftest import CLICKS, listening, local_api, picture, png
from tests.prefix_proxy import behind_prefix


@pytest.fixture(params=["taken away", "left"])
def shown(request, checkpoint, tmp_path):
    """The address of a server below a prefix."""
    strips = request.param == "taken away"
    settings = ServeSettings(
        model=str(checkpoint),
        image_store=str(tmp_path),
        precision="fp32",
        max_bytes=200_000,
        root_path="" if strips else "/tools/mst",
    )
    with listening(local_api(settings)) as url, behind_prefix(url, "/tools/mst", strips=strips) as address:
        yield address


def test_all_addresses_of_the_page_and_of_the_docs_are_there(shown):
    page = httpx.get(shown)
    assert page.is_success
    addresses = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(addresses) == 3
    for each in addresses:
        assert httpx.get(httpx.URL(shown).join(each)).is_success, each
    docs = httpx.get(f"{shown}docs")
    for file in re.findall(r"docs/files/[\w.-]+", docs.text):
        assert httpx.get(httpx.URL(str(docs.url)).join(file)).status_code == 200
    (description,) = re.findall(r"url: '([^']+)'", docs.text)
    schema = httpx.get(httpx.URL(str(docs.url)).join(description)).json()
    (server,) = schema["servers"]
    root = httpx.URL(f"{shown}openapi.json").join(server["url"])
    assert str(root) == shown
    assert httpx.get(root.join("healthz")).json() == {"status": "ok"}


def test_the_client_clicks_below_a_prefix(shown, local):
    expected = Client(local).segment(picture(), CLICKS).mask
    with Client(shown) as client:
        assert (client.segment(picture(), CLICKS).mask == expected).all()
        assert (client.mask(client.upload(picture()), CLICKS).mask == expected).all()


def test_the_gates_limits_know_the_paths_below_a_prefix(shown):
    """An image may hold what a body of JSON must not: a million commas."""
    reply = httpx.post(f"{shown}v1/images", content=png(picture()) + b"," * 100_000)
    assert reply.status_code == 201
    assert httpx.post(f"{shown}v1/images", content=b"," * 200_001).status_code == 413
    assert httpx.post(f"{shown}v1/segment", content=b"{}").status_code == 422


def test_the_settings_know_how_the_routes_begin(checkpoint, tmp_path):
    app = local_api(ServeSettings(model=str(checkpoint), image_store=str(tmp_path)))
    hidden = [each.path for each in app.routes if hasattr(each, "path")]
    assert {path.split("/")[1] for path in (*app.openapi()["paths"], *hidden)} - {""} == ROUTES


@pytest.mark.parametrize("wrong", ["/v1", "/web/mst", "/v2/models"])
def test_a_root_path_that_begins_as_a_route_is_refused(wrong):
    with pytest.raises(ValueError, match=f"root_path {wrong} begins as the server's own"):
        ServeSettings(root_path=wrong)


@pytest.mark.parametrize("wrong", ["mst", "/mst/", "/m st", "//mst", "https://host/mst"])
def test_a_root_path_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="root_path"):
        ServeSettings(root_path=wrong)

"""Base64 in all forms in which tools write it, by the one decoder and at the routes."""

import base64
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mst.data.pixels.base64_text import from_base64
from tests.conftest import picture, png

DATA = png(picture())
PLAIN = base64.b64encode(DATA).decode()
FORMS = {
    "plain": PLAIN,
    "data URL": f"data:image/png;base64,{PLAIN}",
    "data URL with a parameter": f"data:image/png;charset=utf-8;base64,{PLAIN}",
    "DATA URL": f"DATA:IMAGE/PNG;BASE64,{PLAIN}",
    "wrapped": base64.encodebytes(DATA).decode(),
    "wrapped as on Windows": base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
    "wrapped and indented": base64.encodebytes(DATA).decode().replace("\n", "\n    "),
    "URL-safe": base64.urlsafe_b64encode(DATA).decode(),
    "without padding": PLAIN.rstrip("="),
}
CLICKS = [{"x": 30, "y": 20}]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_decoded(form):
    assert from_base64(FORMS[form]) == DATA


@given(st.binary(max_size=50), st.booleans(), st.booleans())
def test_what_was_encoded_comes_back(data, is_url_safe, is_padded):
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(data).decode()
    assert from_base64(text if is_padded else text.rstrip("=")) == data


@pytest.mark.parametrize(
    "text",
    [
        "?",
        "A",
        "AAA\0",
        "AA=A",
        "AAA==",
        "AA=",
        "+AA A",
        "data:image/png,AAAA",
        "ä",
        "\ud800",
        None,
        5,
        b"AAAA",
    ],
)
def test_what_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"not .*base64"):
        from_base64(text)


@pytest.mark.parametrize("form", FORMS)
def test_every_route_takes_every_form(http, form):
    expected = http.post("/v1/segment", json={"image": PLAIN, "clicks": CLICKS}).json()["mask"]
    image, mask = FORMS[form], base64.b64encode(png(picture() * 0 + 255)).decode()
    assert http.post("/v1/segment", json={"image": image, "clicks": CLICKS}).json()["mask"] == expected
    wrapped = "\n".join(mask[i : i + 76] for i in range(0, len(mask), 76))
    assert http.post("/v1/segment", json={"image": image, "clicks": CLICKS, "prior": wrapped}).is_success
    cvat = {"image": image, "pos_points": [[30, 20]], "neg_points": []}
    assert http.post("/api/function_invocations", json=cvat).is_success
    assert http.post("/invocations", json={"inputs": [{"image": image, "clicks": CLICKS}]}).is_success
    marks = {"marks": [{"type": "point", "data": [30, 20], "label": 1}]}
    assert http.post("/v1/predict", json={"model": "mst", "image": image, "params": marks}).is_success


def test_what_is_no_base64_is_named(http):
    reply = http.post("/v1/segment", json={"image": "?", "clicks": CLICKS})
    assert reply.status_code == 422
    assert reply.json()["detail"] == [
        {"loc": ["body", "image"], "msg": "not base64, nor a data URL of it", "type": "value_error"}
    ]


BODY = json.dumps({"image": PLAIN, "clicks": CLICKS}).encode()


@pytest.mark.parametrize(
    "kind", [None, "application/x-www-form-urlencoded", "application/json; charset=utf-8"]
)
def test_json_without_its_content_type_is_understood(http, kind):
    request = http.build_request("POST", "/v1/segment", content=BODY)
    request.headers.pop("content-type", None)
    if kind:
        request.headers["content-type"] = kind
    assert http.send(request).is_success


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/xml"},
        {"Content-Type": "application/x-www-form-urlencoded", "Origin": "own"},  # a form of a page
    ],
)
def test_another_content_type_is_told_what_is_right(http, headers):
    if "Origin" in headers:
        headers = {**headers, "Origin": str(http.base_url).rstrip("/")}
    reply = http.post("/v1/segment", content=BODY, headers=headers)
    assert reply.status_code == 422
    said = reply.json()["detail"][0]["msg"]
    assert said == f"the content type must be application/json, not '{headers['Content-Type']}'"


def test_a_form_with_an_image_is_told_what_is_right(http):
    reply = http.post("/v1/images", files={"file": ("photo.png", DATA)})
    assert reply.status_code == 415
    assert "the image file itself, as `curl --data-binary @photo.jpg` does" in reply.json()["detail"]
    assert isinstance(reply, httpx.Response)

"""The backend of Label Studio over the wire; the real one drives it in `test_clients.py`."""

import asyncio
import base64

import httpx
import numpy as np
import pytest

from mst.clicks import Click
from mst.client import Client
from mst.errors import ImageError, ImageTooLargeError
from serve.errors import OverloadedError, RequestError
from serve.protocols.label_studio import Region, Tags
from serve.protocols.label_studio_images import LabelStudioImages
from tests.conftest import picture, png
from tests.mst.data.test_brush import unpacked

CONFIG = """<View><Image name="img" value="$image" zoom="true"/>
<BrushLabels name="brush" toName="img"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
<KeyPointLabels name="kp" toName="img" smart="true"><Label value="Dog"/></KeyPointLabels></View>"""
URI = "data:image/png;base64," + base64.b64encode(png(picture())).decode()


def keypoint(x, y, label="Dog", **more) -> dict:
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": [label]}
    return {"type": "keypointlabels", "id": "a", "from_name": "kp", "value": value, **more}


def request(*regions, image=URI, config=CONFIG) -> dict:
    context = {"result": list(regions)} if regions else None
    return {
        "tasks": [{"id": 1, "data": {"image": image}}],
        "project": "1.1700",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }


def test_the_backend_introduces_itself(http, checkpoint):
    name = f"{checkpoint.parent.name}/{checkpoint.name}"
    assert http.get("/health").json() == {"status": "UP", "model_class": "MST"}
    assert http.post("/setup", json={"project": "1", "schema": CONFIG}).json() == {"model_version": name}
    assert http.get("/versions").json() == {"versions": [name]}
    for path in ("webhook", "train", "validate", "delete", "duplicate_model", "job_status"):
        assert http.post(f"/{path}", json={"action": "ANNOTATION_CREATED"}).is_success


def test_keypoints_give_a_brush_mask(http, local, checkpoint):
    regions = [keypoint(50, 50), keypoint(10, 100, is_positive=False), keypoint(25, 20)]
    answer = http.post("/predict", json=request(*regions)).json()["results"]
    assert len(answer) == 1
    assert answer[0]["model_version"] == f"{checkpoint.parent.name}/{checkpoint.name}"
    (region,) = answer[0]["result"]
    assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "img", "brushlabels")
    assert (region["original_width"], region["original_height"]) == (140, 90)
    assert region["value"]["brushlabels"] == ["Dog"]
    got = unpacked(bytes(region["value"]["rle"])).reshape(90, 140, 4)[..., 3] == 255
    clicks = [Click(45, 70, True), Click(89, 14, False), Click(18, 35, True)]
    np.testing.assert_array_equal(got, Client(local).segment(picture(), clicks).mask)
    assert region["score"] == answer[0]["score"] > 0


def test_nothing_marked_is_an_empty_prediction(http):
    for regions in (
        [],
        [keypoint(1, 1, is_positive=False)],
        [{"type": "brushlabels", "value": {"rle": [1]}}],
    ):
        results = http.post("/predict", json=request(*regions)).json()["results"]
        assert [each["result"] for each in results] == [[]]


def test_the_label_is_one_that_the_brush_has():
    def target(*names):
        marks = [Region.model_validate(keypoint(1, 1, name)) for name in names]
        return Tags(CONFIG).marked(marks)

    found, marks = target("Dog")
    assert (found.from_name, found.to_name, found.data_key) == ("brush", "img", "image")
    assert found.label(marks) == "Dog"
    for names, label in ((("Background",), "Cat"), (("Background", "Dog"), "Dog")):
        found, marks = target(*names)
        assert found.label(marks) == label


TWO_IMAGES = """<View><Image name="left" value="$a"/><Image name="right" value="$b"/>
<BrushLabels name="brush_left" toName="left"><Label value="Cat"/></BrushLabels>
<BrushLabels name="brush_right" toName="right"><Label value="Dog"/></BrushLabels></View>"""
RIGHT_ALONE = TWO_IMAGES.replace(TWO_IMAGES.splitlines()[1], "")


def of_two(*regions, config=TWO_IMAGES) -> dict:
    """A request on a task of two images, of which the right one is turned."""
    right = "data:image/png;base64," + base64.b64encode(png(np.rot90(picture()))).decode()
    return request(*regions, config=config) | {"tasks": [{"id": 1, "data": {"a": URI, "b": right}}]}


@pytest.mark.parametrize("config", [TWO_IMAGES, RIGHT_ALONE])
def test_a_mask_is_of_the_image_that_was_clicked_on(http, local, config):
    answer = http.post("/predict", json=of_two(keypoint(50, 50, to_name="right"), config=config)).json()
    (region,) = answer["results"][0]["result"]
    assert (region["from_name"], region["to_name"]) == ("brush_right", "right")
    assert (region["original_width"], region["original_height"]) == (90, 140)
    assert region["value"]["brushlabels"] == ["Dog"]
    got = unpacked(bytes(region["value"]["rle"])).reshape(140, 90, 4)[..., 3] == 255
    image = np.ascontiguousarray(np.rot90(picture()))
    np.testing.assert_array_equal(got, Client(local).segment(image, [Click(70, 45, True)]).mask)


def test_marks_on_the_other_image_are_of_another_object(http):
    last = keypoint(50, 50, to_name="left")
    both = http.post("/predict", json=of_two(keypoint(10, 10, to_name="right"), last)).json()
    alone = http.post("/predict", json=of_two(last)).json()
    (one,), (other,) = (each["results"][0]["result"] for each in (both, alone))
    assert one["value"] == other["value"]
    assert one["to_name"] == "left"


@pytest.mark.parametrize(
    ("region", "config", "said"),
    [
        (keypoint(1, 1), TWO_IMAGES, "a mark needs 'to_name', since label_config has the images left, right"),
        (
            keypoint(1, 1, to_name="top"),
            TWO_IMAGES,
            "a mark is on 'top', which is no <Image> of label_config: left",
        ),
        (keypoint(1, 1, to_name="left"), RIGHT_ALONE, 'needs <BrushLabels toName="left"> for the mask'),
    ],
)
def test_a_mark_on_no_image_that_takes_a_mask_is_refused_by_name(http, region, config, said):
    reply = http.post("/predict", json=of_two(region, config=config))
    assert reply.status_code == 422
    assert said in reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (request(keypoint(50, 50), config="<View>"), 422, "not XML"),
        (request(keypoint(50, 50), config="<View/>"), 422, "<Image>"),
        (
            request(keypoint(50, 50), config='<View><Image name="i" value="$image"/></View>'),
            422,
            "BrushLabels",
        ),
        (request(keypoint(50, 50), config='<!DOCTYPE x [<!ENTITY a "b">]>' + CONFIG), 422, "document type"),
        (request(keypoint(50, 50), image=None), 422, "no image under 'image'"),
        (request(keypoint(50, 50), image="/data/upload/1/a.png"), 422, "label_studio_url"),
        (request(keypoint(50, 50), image="data:image/png;base64,?"), 415, "base64"),
        (request(keypoint(101, 50)), 422, "100"),
        (request(keypoint(50, 50)) | {"tasks": []}, 422, "tasks"),
    ],
)
def test_label_studio_is_told_what_is_wrong(http, body, status, message):
    reply = http.post("/predict", json=body)
    assert reply.status_code == status, reply.text
    assert message in reply.text


# Images


def fetch(address, respond, url="http://studio:8080/ls", token="abc", max_bytes=1000):
    """What is fetched, and the requests that it took."""
    requests = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return respond(request)

    images = LabelStudioImages(url, token, max_bytes, httpx.MockTransport(handler))
    return asyncio.run(images.fetch(address)), requests


def test_images_are_fetched_with_the_token():
    data, (request,) = fetch("/data/upload/1/a.png", lambda _: httpx.Response(200, content=b"file"))
    assert data == b"file"
    assert str(request.url) == "http://studio:8080/data/upload/1/a.png"
    assert request.headers["Authorization"] == "Token abc"


def test_a_personal_token_is_exchanged():
    def respond(request):
        if request.url.path.endswith("/api/token/refresh"):
            assert request.content == b'{"refresh":"a.b.c"}'
            return httpx.Response(200, json={"access": "short"})
        return httpx.Response(200, content=b"file")

    data, requests = fetch("/data/upload/1/a.png", respond, token="a.b.c")
    assert data == b"file"
    assert requests[-1].headers["Authorization"] == "Bearer short"


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://studio:8080/a.png",
        "http://studio/a.png",
        "//evil/a.png",
        "http://studio:8080@evil/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://[/a.png",
        "/data/\x00.png",
    ],
)
def test_images_elsewhere_are_refused_unasked(address):
    def respond(request):
        raise AssertionError("asked")

    elsewhere = " lies on another server than the Label Studio of this one"
    with pytest.raises(RequestError, match=rf"^the task's image({elsewhere}|: not an address)$"):
        fetch(address, respond)
    with pytest.raises(RequestError, match="label_studio_url"):
        fetch("/data/a.png", respond, url="")


def test_redirects_errors_and_floods_are_refused():
    elsewhere = httpx.Response(302, headers={"Location": "http://169.254.169.254/"})
    with pytest.raises(ImageError, match="answers 302"):
        fetch("/data/a.png", lambda _: elsewhere)
    with pytest.raises(ImageError, match="answers 404"):
        fetch("/data/a.png", lambda _: httpx.Response(404))
    with pytest.raises(ImageTooLargeError, match="more than 1000 bytes"):
        fetch("/data/a.png", lambda _: httpx.Response(200, content=bytes(1001)))

    def silent(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(OverloadedError, match="does not answer"):  # now: another try may succeed
        fetch("/data/a.png", silent)
    with pytest.raises(OverloadedError, match="answers 502"):
        fetch("/data/a.png", lambda _: httpx.Response(502))

"""The client: what it sends, what it tries again and for how long, and its command line."""

import base64
import json
import time

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mst.checkpoint import load_model
from mst.clicks import Click
from mst.client import Client, Retry
from mst.client.__main__ import main
from mst.errors import ClickError, MSTError, ServerError
from mst.predictor import Predictor
from mst.zoom import Box
from pipelines.cluster import free_port
from serve.settings import ServeSettings
from tests.conftest import listening, local_api, picture, png

MASK = np.zeros((90, 140), bool)
MASK[20:50, 30:80] = True
CLICKS = [Click(30, 40, True), Click(70, 100, False)]
QUICK = Retry(seconds=2, first_wait=0.01, max_wait=0.02)


def answer(status: int = 200, **headers: str) -> httpx.Response:
    """The server's."""
    rle = coco_mask.encode(np.asfortranarray(MASK, np.uint8))
    body = {
        "mask": {"size": rle["size"], "counts": rle["counts"].decode()},
        "score": 0.9,
        "model": {"name": "mst", "version": "7", "digest": "0"},
    }
    return httpx.Response(status, json=body if status == 200 else {"detail": "no"}, headers=headers)


class Wire(httpx.BaseTransport):
    """Answers with what it is given, in turn; the last one stays."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(now, Exception):
            raise now
        return now


def client(wire: Wire, **more) -> Client:
    return Client("http://server", transport=wire, **{"retry": QUICK, **more})


def test_it_sends_the_image_and_the_clicks_and_the_key():
    wire = Wire(answer())
    got = client(wire, api_key="secret").segment(picture(), CLICKS)
    np.testing.assert_array_equal(got.mask, MASK)
    assert (got.score, got.model) == (0.9, "mst/7")
    request = wire.requests[0]
    assert request.headers["Authorization"] == "Bearer secret"
    sent = json.loads(request.content)
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(sent.pop("image")), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decoded, picture())
    assert sent["clicks"] == [
        {"x": 40, "y": 30, "is_positive": True},
        {"x": 100, "y": 70, "is_positive": False},
    ]


def test_a_box_and_a_mask_to_correct_reach_the_model(local, predictor):
    prior = MASK.copy()
    got = Client(local).segment(picture(), CLICKS[1:], prior=prior).mask
    np.testing.assert_array_equal(got, predictor.open(picture(), prior)(CLICKS[1:]))
    wire = Wire(answer())
    client(wire).segment(picture(), [], box=Box(10, 20, 50, 90))
    assert json.loads(wire.requests[0].content)["box"] == [20, 10, 90, 50]
    boxed = Client(local).segment(picture(), [], box=Box(10, 20, 50, 90)).mask
    assert boxed.any()


@pytest.fixture(scope="module")
def predictor(checkpoint) -> Predictor:
    model, config = load_model(checkpoint)
    return Predictor(model, config.eval)


def test_a_files_bytes_are_sent_as_they_are():
    wire = Wire(answer())
    client(wire).segment(b"a file", CLICKS)
    assert base64.b64decode(json.loads(wire.requests[0].content)["image"]) == b"a file"
    assert "Authorization" not in wire.requests[0].headers


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("server disconnected"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("silent"),
        answer(429),
        answer(502),
        answer(503),
        answer(504),
        httpx.Response(500, text="The actor died"),  # of Serve's proxy
    ],
    ids=str,
)
def test_what_passes_is_tried_again_with_the_same_request(failure):
    wire = Wire(failure, failure, answer())
    np.testing.assert_array_equal(client(wire).segment(picture(), CLICKS).mask, MASK)
    assert len(wire.requests) == 3
    assert len({request.content for request in wire.requests}) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 422, 500])
def test_what_does_not_pass_is_not_tried_again(status):
    wire = Wire(answer(status))
    with pytest.raises(ServerError, match=f"/v1/segment: {status} .*no"):
        client(wire).segment(picture(), CLICKS)
    assert len(wire.requests) == 1


@pytest.mark.parametrize("reply", [httpx.Response(200, text="<html>"), httpx.Response(301, json={})])
def test_what_is_no_server_of_ours_is_said_so(reply):
    with pytest.raises(ServerError, match=f"no answer of this server, but {reply.status_code}"):
        client(Wire(reply)).segment(picture(), CLICKS)


def test_the_server_says_how_long_to_wait():
    wire = Wire(answer(503, **{"Retry-After": "1"}), answer())
    start = time.monotonic()
    client(wire).segment(picture(), CLICKS)
    assert 1 <= time.monotonic() - start < 1.9
    wire = Wire(answer(503, **{"Retry-After": "3600"}), answer())
    with pytest.raises(ServerError, match="503"):  # at once: it would be over before
        client(wire).segment(picture(), CLICKS)
    assert time.monotonic() - start < 1.9


def test_tries_end_when_their_time_is_over():
    for wire, message in (
        (Wire(answer(503)), "503"),
        (Wire(httpx.ConnectError("refused")), r"refused, after \d+ tries"),
    ):
        start = time.monotonic()
        with pytest.raises(ServerError, match=message):
            client(wire, retry=Retry(seconds=0.3, first_wait=0.01, max_wait=0.05)).upload(picture())
        assert 0.1 < time.monotonic() - start < 1
        assert len(wire.requests) > 3
    wire = Wire(answer(503))
    with pytest.raises(ServerError, match="503"):
        client(wire, retry=Retry(seconds=0)).upload(picture())
    assert len(wire.requests) == 1


def test_waits_double_up_to_the_longest_and_differ_between_clients():
    retry = Retry(first_wait=1, max_wait=8)
    for number, longest in enumerate((1, 2, 4, 8, 8)):
        waits = {retry.wait(number, None) for _ in range(50)}
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert len(waits) == 50


def test_an_address_without_a_scheme_is_said_so():
    with pytest.raises(ServerError, match="no address of a server"):
        Client("localhost:8000").upload(picture())


def test_the_command_line_writes_the_mask_over_the_image(local, tmp_path, capsys):
    path = tmp_path / "photo.png"
    path.write_bytes(png(picture()))
    options = [str(path), "--url", local, "--click", "30,20", "--negative", "100,70"]
    main(options)
    printed = capsys.readouterr().out
    assert str(tmp_path / "photo_mask.png") in printed
    drawn = cv2.imread(str(tmp_path / "photo_mask.png"), cv2.IMREAD_COLOR_RGB)
    assert drawn.shape == picture().shape
    mask = Client(local).segment(picture(), [Click(20, 30, True), Click(70, 100, False)]).mask
    outside = ~cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
    outside[60:80, 90:110] = outside[10:30, 20:40] = False  # the clicks are drawn there
    dimmed = picture()[outside].astype(float) * 0.4
    assert outside.any()
    assert np.abs(drawn[outside] - dimmed).max() <= 1

    main([*options, "--out", str(tmp_path / "here.png")])
    assert (tmp_path / "here.png").exists()
    (tmp_path / "notes.txt").write_text("no image")
    for name, message in (("notes.txt", "not an image"), ("none.png", "No such file")):
        with pytest.raises(MSTError, match=message):
            main([str(tmp_path / name), "--click", "1,1", "--url", local])
    with pytest.raises(MSTError, match="refused"):
        main([str(path), "--click", "1,1", "--url", f"http://127.0.0.1:{free_port()}", "--patience", "0"])


@pytest.mark.parametrize("click", ["1", "a,b", "1,2,3", "1.5,2"])
def test_a_wrong_click_is_said_so(click, capsys):
    with pytest.raises(SystemExit):
        main(["photo.png", "--click", click])
    assert "X,Y in pixels" in capsys.readouterr().err


def many_clicks(count):
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, 90, count), rng.integers(0, 140, count)
    drawn = zip(rows.tolist(), cols.tolist(), strict=True)
    return [Click(20, 30, True), *(Click(row, col, row % 2 == 1) for row, col in drawn)]


def test_more_clicks_than_one_request_can_do_are_gone_on_with(checkpoint, local, tmp_path):
    """Each request ends at its deadline; what is done is kept, said, and gone on with."""
    settings = ServeSettings(
        model=str(checkpoint), image_store=str(tmp_path), precision="fp32", deadline_seconds=2
    )
    clicks = many_clicks(40)
    with listening(local_api(settings, seconds=0.1)) as url:
        image_id = Client(url).upload(picture())
        body = {
            "clicks": [{"x": each.col, "y": each.row, "is_positive": each.is_positive} for each in clicks]
        }
        first = httpx.post(f"{url}/v1/images/{image_id}/mask", json=body)
        assert first.status_code == 503
        done = first.json()["clicks_done"]
        assert 0 < done < len(clicks)
        assert f"{done} of {len(clicks)} clicks are done after 2 s" in first.json()["detail"]
        assert "Retry-After" in first.headers
        with Client(url) as client:
            found = client.mask(image_id, clicks).mask
    np.testing.assert_array_equal(found, Client(local).segment(picture(), clicks).mask)


def unfinished(done):
    return httpx.Response(503, json={"detail": f"{done} of 9 clicks are done", "clicks_done": done})


def test_a_client_goes_on_as_long_as_more_is_done():
    patience = Retry(seconds=0.3, first_wait=0.2, max_wait=0.2)
    wire = Wire(*map(unfinished, (2, 4, 6, 8)), answer())
    np.testing.assert_array_equal(client(wire, retry=patience).segment(picture(), CLICKS).mask, MASK)
    assert len(wire.requests) == 5
    wire = Wire(*map(unfinished, (4, 2, 4, 3, 4, 2, 4)))  # of replicas that each know something else
    with pytest.raises(ServerError, match="clicks are done"):
        client(wire, retry=patience).segment(picture(), CLICKS)
    assert len(wire.requests) < 5


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"mask": "x"},
        {"mask": {"size": [3, 4], "counts": "00"}, "score": 1, "model": {"name": "a", "version": "1"}},
        {"mask": {"size": [-3, 4], "counts": "<"}, "score": 1, "model": {"name": "a", "version": "1"}},
        {"mask": {"size": [3, "4"], "counts": "<"}, "score": 1, "model": {"name": "a", "version": "1"}},
        {"mask": {"size": [3, 4], "counts": "\u1234"}, "score": 1, "model": {"name": "a", "version": "1"}},
        {"mask": {"size": [3, 4], "counts": "<"}, "score": 1},
    ],
    ids=str,
)
def test_an_answer_that_is_no_mask_is_said_so(reply):
    with pytest.raises(ServerError, match="the server's answer is no mask"):
        client(Wire(httpx.Response(200, json=reply))).segment(picture(), CLICKS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mask": {"size": [3, 4], "counts": "<"}}, r"is a mask of \(3, 4\), the image has \(90, 140\)"),
        ({"score": "0.9"}, "has the score '0.9', which is no number"),
        ({"score": True}, "has the score True"),
        ({"score": None}, "has the score None"),
    ],
    ids=str,
)
def test_an_answer_that_does_not_fit_is_said_so(changed, said):
    for image in (picture(), png(picture())):
        wire = Wire(httpx.Response(200, json=answer().json() | changed))
        with pytest.raises(ServerError, match=said):
            client(wire).segment(image, CLICKS)


def test_a_key_that_no_header_can_have_is_said_so():
    for key in ("schlüssel", "a\nb"):
        with pytest.raises(ServerError, match="the API key has characters"):
            Client("http://127.0.0.1:1", api_key=key)


def test_broken_answers_and_addresses_are_said_so():
    cut = httpx.Response(200, content=b'{"mask"', headers={"Content-Type": "application/json"})
    for reply in (cut, httpx.Response(200, json=[1])):
        with pytest.raises(ServerError, match="cut short, or no JSON object"):
            client(Wire(reply)).segment(picture(), CLICKS)
    with pytest.raises(ServerError, match="has no image_id"):
        client(Wire(httpx.Response(200, json={}))).upload(picture())
    with pytest.raises(ServerError, match="no address of a server"):
        Client("http://x:abc")
    with pytest.raises(ClickError, match="is no Box, as in Box"):
        client(Wire(answer())).segment(picture(), [], box=(1, 2, 3, 4))


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "tif"])
def test_the_command_line_writes_the_format_that_is_named(local, tmp_path, suffix):
    (tmp_path / "photo.png").write_bytes(png(picture()))
    out = tmp_path / "made" / f"mask.{suffix}"  # the folder is made
    main([str(tmp_path / "photo.png"), "--url", local, "--click", "30,20", "--out", str(out)])
    with Image.open(out) as written:
        assert written.format == {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        assert written.size == (140, 90)


def test_the_command_line_reads_what_the_server_reads(local, tmp_path):
    levels = Image.fromarray(picture()[..., 0].astype(np.uint16) * 200)
    levels.save(tmp_path / "deep.png")
    main([str(tmp_path / "deep.png"), "--url", local, "--click", "30,20"])
    assert (tmp_path / "deep_mask.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "mask.xyz"], "no image is written as '.xyz'; there are .png, .jpg"),
        (["--out", "mask"], "no image is written as ''"),
        (["--out", "photo.png/mask.png"], "photo.png"),
        (["--out", "there.png"], "there.png: a folder is there already; name a file"),
        (["--click", "140,1"], "click 2 at row 1, col 140 lies outside the image of 90 rows and 140 col"),
        (["--url", "localhost:1"], "no address of a server"),
        (["--api-key", "schlüssel"], "the API key has characters"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_server_is_asked(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(png(picture()))
    (tmp_path / "there.png").mkdir()
    with pytest.raises(MSTError, match=said):
        main(["photo.png", "--click", "30,20", "--patience", "0", "--url", "http://127.0.0.1:1", *options])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "there.png"]


def test_the_command_line_refuses_a_folder_and_a_patience_that_is_none(tmp_path, capsys):
    with pytest.raises(MSTError, match="Is a directory"):
        main([str(tmp_path), "--click", "1,1", "--out", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit):
        main(["a.png", "--click", "1,1", "--patience", "nan"])
    assert "'nan' is no number of seconds" in capsys.readouterr().err

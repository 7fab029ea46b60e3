"""Masks that annotators accept: kept with their images, listed, deleted, exported, and read for training."""

import httpx
import numpy as np
import pytest
from upath import UPath

from mst.clicks import Click
from mst.data.sources import parse_source
from serve.errors import OverloadedError
from serve.settings import ServeSettings
from serve.state.annotations import Annotations
from serve.wire.encoding import png as png_of
from serve.wire.encoding import rle, text
from tests.conftest import listening, local_api, picture, png, random_mask

MASK = random_mask(np.random.default_rng(0), 90, 140)
KEYS = "first-key-of-the-test", "second-key-of-the-test"


@pytest.fixture
def kept(tmp_path) -> str:
    return str(tmp_path / "annotations")


@pytest.fixture
def server(checkpoint, tmp_path, kept):
    settings = ServeSettings(
        model=str(checkpoint), image_store=str(tmp_path / "images"), annotation_store=kept, precision="fp32"
    )
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    with (
        listening(local_api(settings, *KEYS)) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        yield client


def annotation(**more) -> dict:
    return {"label": "cat", "mask": rle(MASK).model_dump(), "clicks": [{"x": 30, "y": 20}], **more}


def uploaded(server, seed: int = 0) -> str:
    reply = server.post("/v1/images", content=png(picture(seed))).json()
    assert reply["keeps_annotations"]
    return f"/v1/images/{reply['image_id']}/annotations"


def test_what_is_accepted_is_kept_with_its_image_and_read_for_training(server, kept, tmp_path):
    url = uploaded(server)
    reply = server.post(url, json=annotation(score=0.9))
    assert reply.status_code == 201
    again = server.post(url, json=annotation(mask=text(png_of(MASK))), headers={"X-API-Key": KEYS[1]})
    assert again.json() == reply.json()  # the same mask, in another form
    server.post(url, json=annotation(label="dog", mask=rle(~MASK).model_dump()))

    listed = server.get(url).json()["annotations"]
    assert sorted(each["label"] for each in listed) == ["cat", "dog"]
    (cat,) = (each for each in listed if each["label"] == "cat")
    assert cat["area"] == MASK.sum()
    assert cat["clicks"] == [{"x": 30, "y": 20, "is_positive": True}]
    assert cat["author"]
    assert all(key not in str(listed) for key in KEYS)

    for each in (tmp_path / "images").iterdir():
        each.unlink()  # swept away
    (record,) = parse_source("accepted:annotations", UPath(tmp_path)).read()
    assert {each.decode().tobytes() for each in record.objects} == {MASK.tobytes(), (~MASK).tobytes()}
    np.testing.assert_array_equal(record.read(), picture())


def test_authors_are_told_apart_and_their_keys_not_told(server):
    url = uploaded(server)
    for key, label in zip(KEYS, ("cat", "dog"), strict=True):
        server.post(url, json=annotation(label=label), headers={"Authorization": f"Bearer {key}"})
    assert len({each["author"] for each in server.get(url).json()["annotations"]}) == 2
    assert server.post(url, json=annotation(), headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert server.get("/v1/annotations", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_the_last_annotation_takes_the_image_with_it(server, kept, tmp_path):
    url = uploaded(server)
    ids = [server.post(url, json=annotation(label=label)).json()["annotation_id"] for label in ("cat", "dog")]
    assert server.delete(f"{url}/{ids[0]}").status_code == 204
    assert server.delete(f"{url}/{ids[0]}").status_code == 404
    assert len([*(tmp_path / "annotations" / "images").iterdir()]) == 1
    assert server.delete(f"{url}/{ids[1]}").status_code == 204
    assert not [*(tmp_path / "annotations" / "images").iterdir()]
    assert server.get(url).json() == {"annotations": []}
    assert server.delete(f"{url}/..%2F..%2Fimages").status_code == 404


def test_all_are_exported_as_coco(server):
    for seed, label in ((0, "cat"), (1, "dog"), (1, "cat")):
        server.post(uploaded(server, seed), json=annotation(label=label))
    coco = server.get("/v1/annotations").json()
    assert len(coco["images"]) == 2
    assert [each["name"] for each in coco["categories"]] == ["cat", "dog"]
    assert len(coco["annotations"]) == 3
    assert {each["area"] for each in coco["annotations"]} == {int(MASK.sum())}
    assert all(each["segmentation"] == rle(MASK).model_dump(mode="json") for each in coco["annotations"])


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"mask": rle(np.zeros_like(MASK)).model_dump()}, 422),
        ({"mask": rle(MASK[:9]).model_dump()}, 422),
        ({"mask": "no png"}, 422),
        ({"label": ""}, 422),
        ({"score": 2}, 422),
        ({"more": 1}, 422),
    ],
)
def test_what_is_no_annotation_is_refused_and_nothing_is_kept(changes, status, server, tmp_path):
    assert server.post(uploaded(server), json=annotation(**changes)).status_code == status
    assert not (tmp_path / "annotations").exists()
    missing = server.post(f"/v1/images/{'0' * 64}/annotations", json=annotation())
    assert missing.status_code == 404


def test_a_server_without_a_store_keeps_nothing_and_says_so(http):
    reply = http.post("/v1/images", content=png(picture())).json()
    assert not reply["keeps_annotations"]
    url = f"/v1/images/{reply['image_id']}/annotations"
    for answer in (http.post(url, json=annotation()), http.get(url), http.get("/v1/annotations")):
        assert answer.status_code == 404
        assert "start it with --annotation-store" in answer.json()["detail"]


def test_a_bucket_keeps_them_too_and_a_store_that_is_away_is_said_so(tmp_path, s3, monkeypatch):
    document = {"image_id": "ab", "label": "cat", "mask": rle(MASK).model_dump(mode="json")}
    kept = Annotations(f"{s3.upload(tmp_path / 'nothing')}/annotations")
    annotation_id = kept.put(b"image", ".png", document)
    assert [each["id"] for each in kept.all()] == [annotation_id]
    assert kept.delete("ab", annotation_id)
    assert not kept.delete("ab", annotation_id)
    assert kept.all() == []

    (tmp_path / "file").write_text("")
    with pytest.raises(OverloadedError, match="does not answer"):
        Annotations(str(tmp_path / "file" / "inside")).put(b"image", ".png", document)


def test_clicks_of_the_reply_and_of_the_annotation_are_one_form(server):
    image = server.post("/v1/images", content=png(picture())).json()["image_id"]
    clicks = [{"x": each.col, "y": each.row} for each in (Click(20, 30, True),)]
    reply = server.post(f"/v1/images/{image}/mask", json={"clicks": clicks, "threshold": 0.1}).json()
    body = annotation(mask=reply["mask"], clicks=clicks, model=reply["model"], score=reply["score"])
    assert server.post(f"/v1/images/{image}/annotations", json=body).status_code == 201

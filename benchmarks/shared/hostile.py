"""Requests that nobody should send, each drawn at random: to the server's own routes, and to other tools'."""

import base64
import copy
import io
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
from PIL import Image

from benchmarks.shared.serving import photo

NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1",
    "1e308",
    "1e-320",
    "9" * 5000,
    "null",
    "true",
    '"1"',
    "[]",
)
TEXTS = ("", "?", "A" * 1000, "\\u0000", "\\ud800", "../../etc/passwd", "data:image/png;base64,", "AAAA", "=")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO")

MARK = "what is to be replaced"
BOX_AND_CLICK = [
    {"type": "rectanglelabels", "value": {"x": 5, "y": 5, "width": 60, "height": 60, "rotation": 0}},
    {"type": "keypointlabels", "value": {"x": 30, "y": 30, "width": 1}, "is_positive": True},
]
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="Object"/></BrushLabels></View>'
)
ADDRESSES = ("http://169.254.169.254/", "file:///etc/passwd", "//[", "/data/../x", "http://\x00", "data:,")

Reply = httpx.Response


class Target(NamedTuple):
    """What is attacked."""

    image_id: str
    model: str
    """Its name."""


Attack = Callable[[httpx.Client, random.Random, Target], Reply]


def number(rng: random.Random) -> str:
    """A JSON number that is none, or one that is wrong, or right."""
    return rng.choice(NUMBERS) if rng.random() < 0.5 else f"{rng.uniform(-100, 1000):.3f}"


def wrong_clicks(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """Clicks that are no numbers, or nowhere, or too many."""
    click = f'{{"x": {number(rng)}, "y": {number(rng)}, "is_positive": {rng.choice(("true", "false", "2"))}}}'
    body = f'{{"clicks": [{", ".join([click] * rng.choice((0, 1, 2, 201, 1000)))}]}}'
    return http.post(f"/v1/images/{target.image_id}/mask", content=body)


def wrong_options(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """Boxes, priors, thresholds and formats that are wrong."""
    name = rng.choice(("box", "prior", "threshold", "format", "tolerance", "min_area", "tokens", "nothing"))
    size = f'"size": [{rng.choice(("480", "1", "-1", "1e9"))}, 640]'
    prior = f'{{{size}, "counts": "{"".join(rng.choices("0123456789`aPo~", k=rng.randrange(60)))}"}}'
    value = rng.choice((number(rng), f'"{rng.choice(TEXTS)}"', f"[{number(rng)}, 0, 9, 9]", prior))
    body = f'{{"clicks": [{{"x": 1, "y": 1}}], "{name}": {value}}}'
    return http.post(f"/v1/images/{target.image_id}/mask", content=body)


def wrong_json(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """What is no JSON, or much too deep, or of another shape."""
    depth = rng.choice((10, 1000, 50_000))
    bodies = (
        b"[" * depth,
        b'{"a":' * depth,
        rng.randbytes(50),
        b"null",
        b"[]",
        b'"x"',
        b"",
        b"{}",
        b"\xff\xfe{",
    )
    path = rng.choice(
        (f"/v1/images/{target.image_id}/mask", f"/v1/images/{target.image_id}/masks", "/v1/segment")
    )
    return http.post(path, content=rng.choice(bodies))


def wrong_base64(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """An image in the request that is none."""
    text = rng.choice((*TEXTS, base64.b64encode(rng.randbytes(200)).decode()))
    return http.post("/v1/segment", content=f'{{"image": "{text}", "clicks": [{{"x": 1, "y": 1}}]}}')


def wrong_image(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """An image that is cut short, changed, or a bomb."""
    data = bytearray(rng.choice(GOOD))
    kind = rng.randrange(4)
    if kind == 0:
        data = data[: rng.randrange(len(data))]
    elif kind == 1:
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data = bytearray(rng.choice(BOMBS))
    else:
        data = bytearray(rng.randbytes(rng.randrange(200)))
    return http.post("/v1/images", content=bytes(data))


def wrong_route(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """Routes and methods that are not there, and ids that are paths."""
    paths = (
        "/",
        "/v1",
        "/v1/images/../../etc",
        "/v1/images/%2e%2e%2f/mask",
        "/web/../api.py",
        "/docs",
        "/%00",
        "/v1/segment",
    )
    return http.request(rng.choice(METHODS), rng.choice(paths), content=rng.randbytes(rng.randrange(20)))


def huge_header(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """Headers that are long, or many, or strange."""
    value = "a" * rng.choice((10, 1000, 60_000))
    name = rng.choice(("X-Request-Id", "X-Model-Alias", "Authorization", "Cookie", "Content-Type"))
    return http.post(f"/v1/images/{target.image_id}/mask", content=b"{}", headers={name: value})


def spoilt(rng: random.Random, body: dict[str, Any]) -> bytes:
    """A request of which a value, more often than not, is another."""
    if rng.random() < 0.2:
        return json.dumps(body).encode()
    whole = inner = copy.deepcopy(body)
    while True:
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if not (isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.9):
            break
        inner = inner[key]
    inner[key] = MARK
    values = (number(rng), f'"{rng.choice(TEXTS)}"', "{}", "[]", f"[{number(rng)}]", "[[1]]", "[" * 2000)
    return json.dumps(whole).replace(f'"{MARK}"', rng.choice(values)).encode()


def any_image(rng: random.Random) -> str:
    """An image in base64: mostly a right one, or a bomb, or one that is cut short."""
    data = rng.choice((*GOOD[1:], *GOOD[1:], GOOD[1][: rng.randrange(70)], rng.choice(BOMBS)))
    return base64.b64encode(data).decode()


def to_cvat(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """CVAT's points and box."""
    points = {"pos_points": [[5, 5], [9, 9]], "neg_points": [[1, 1]], "obj_bbox": [[1, 1], [20, 15]]}
    body = {"image": any_image(rng), "threshold": 0.5, **points}
    return http.post(rng.choice(("/api/function_invocations", "/")), content=spoilt(rng, body))


def to_x_anylabeling(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """X-AnyLabeling's marks."""
    marks = [{"type": "rectangle", "data": [1, 1, 20, 15]}, {"type": "point", "data": [5, 5], "label": 1}]
    body = {"model": "mst", "image": any_image(rng), "params": {"marks": marks}}
    return http.post("/v1/predict", content=spoilt(rng, body))


def to_mlflow(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """MLflow's records and tables."""
    record = {"image": any_image(rng), "clicks": [{"x": 5, "y": 5, "is_positive": True}]}
    records: tuple[Any, ...] = (
        [record] * rng.choice((1, 2, 101)),
        {name: [value] for name, value in record.items()},
        {"columns": list(record), "data": [list(record.values())]},
    )
    kind = rng.choice(("inputs", "instances", "dataframe_split", "dataframe_records"))
    body = {kind: rng.choice(records), "params": {"format": rng.choice(("rle", "png", "polygons"))}}
    return http.post("/invocations", content=spoilt(rng, body))


def to_label_studio(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """Label Studio's regions, by a label config that may be no XML, and images that lie elsewhere."""
    depth = rng.choice((10, 1000, 100_000))
    configs = (
        LABEL_CONFIG[: rng.randrange(len(LABEL_CONFIG))],
        LABEL_CONFIG.replace("image", rng.choice(("", "a", "\x00", "&x;"))),
        '<!DOCTYPE a [<!ENTITY b "c">]>' + LABEL_CONFIG,
        "<a>" * depth + "</a>" * depth,
    )
    image = f"data:image/png;base64,{any_image(rng)}" if rng.random() < 0.8 else rng.choice(ADDRESSES)
    body = {
        "tasks": [{"data": {"image": image}}] * rng.choice((1, 2, 101)),
        "label_config": LABEL_CONFIG if rng.random() < 0.7 else rng.choice(configs),
        "params": {"context": {"result": BOX_AND_CLICK * rng.choice((1, 1, 150))}},
    }
    return http.post("/predict", content=spoilt(rng, body))


def to_open_inference(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """Tensors of the Open Inference Protocol, in JSON."""
    inputs = [
        {"name": "image", "datatype": "BYTES", "shape": [1], "data": [any_image(rng)]},
        {"name": "clicks", "datatype": "FP32", "shape": [1, 3], "data": [[5, 5, 1]]},
        {"name": "box", "datatype": "FP32", "shape": [4], "data": [1, 1, 20, 15]},
    ]
    outputs = [{"name": name} for name in ("mask", "bbox", "score", "probabilities")]
    body = {"inputs": inputs, "outputs": outputs, "parameters": {"threshold": 0.5}}
    return http.post(f"/v2/models/{target.model}/infer", content=spoilt(rng, body))


def to_binary_inference(http: httpx.Client, rng: random.Random, target: Target) -> Reply:
    """The same in binary, with sizes and lengths of the header that are wrong."""
    pixels = rng.choice((rng.randbytes(20 * 30 * 3), b"," * 1800, b"", bytes(1_000_000)))
    kind = rng.choice((*["UINT8"] * 9, "BYTES", "FP16", "FP64", "BOOL"))
    sizes = {"binary_data_size": rng.choice((*[len(pixels)] * 9, 0, -1, 2**40, 2**70))}
    inputs = [
        {"name": "image", "datatype": kind, "shape": [20, 30, 3], "parameters": sizes},
        {"name": "clicks", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}},
    ]
    text = spoilt(rng, {"inputs": inputs, "parameters": {"binary_data_output": True}})
    lengths = (*[str(len(text))] * 15, str(len(text) - 1), "0", "-1", "x", "9" * 5000, "1e3", "")
    headers = {"Inference-Header-Content-Length": rng.choice(lengths)}
    body = text + pixels + struct.pack("<3f", rng.choice((5, 5, 5, 5, math.nan, math.inf, -1)), 5, 1)
    return http.post(f"/v2/models/{target.model}/infer", content=body, headers=headers)


def picture_file(width: int, height: int, form: str) -> bytes:
    """A blank image."""
    out = io.BytesIO()
    Image.new("L", (width, height)).save(out, form)
    return out.getvalue()


GOOD = (photo(), picture_file(30, 20, "PNG"), picture_file(30, 20, "TIFF"), picture_file(30, 20, "GIF"))
BOMBS = (
    picture_file(20_000, 3000, "PNG"),
    picture_file(15_000, 15_000, "PNG"),
    picture_file(1, 60_000, "PNG"),
)
ATTACKS: tuple[tuple[Attack, int], ...] = (
    (wrong_clicks, 30), (wrong_options, 25), (wrong_json, 15), (wrong_base64, 10), (wrong_image, 8),
    (wrong_route, 8), (huge_header, 4),
    (to_cvat, 10), (to_x_anylabeling, 10), (to_mlflow, 10), (to_label_studio, 12), (to_open_inference, 12),
    (to_binary_inference, 12),
)  # fmt: skip

"""What nobody should send, a hundred thousand times: `make bench-serve_hostile`.

    .venv/bin/python -m benchmarks.serve_hostile --requests 5000

Each request is drawn from a seed: wrong JSON, clicks that are no numbers or nowhere, bad base64 and run
lengths, images that are broken, cut short or bombs, unknown routes and methods, huge headers, bodies that
never end. The server must answer all of them, with no status of 500 or more but 503, and keep its memory.
"""

import argparse
import base64
import io
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
from PIL import Image

from benchmarks.harness import Row, report, row
from benchmarks.serve_faults import replicas
from benchmarks.serving import metric, photo, resident_mb, serving_scenes, upload

THREADS = 8
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

Reply = httpx.Response
Attack = Callable[[httpx.Client, random.Random, str], Reply]


def number(rng: random.Random) -> str:
    """A JSON number that is none, or one that is wrong, or right."""
    return rng.choice(NUMBERS) if rng.random() < 0.5 else f"{rng.uniform(-100, 1000):.3f}"


def wrong_clicks(http: httpx.Client, rng: random.Random, image_id: str) -> Reply:
    """Clicks that are no numbers, or nowhere, or too many."""
    click = f'{{"x": {number(rng)}, "y": {number(rng)}, "is_positive": {rng.choice(("true", "false", "2"))}}}'
    body = f'{{"clicks": [{", ".join([click] * rng.choice((0, 1, 2, 201, 1000)))}]}}'
    return http.post(f"/v1/images/{image_id}/mask", content=body)


def wrong_options(http: httpx.Client, rng: random.Random, image_id: str) -> Reply:
    """Boxes, priors, thresholds and formats that are wrong."""
    name = rng.choice(("box", "prior", "threshold", "format", "tolerance", "min_area", "tokens", "nothing"))
    size = f'"size": [{rng.choice(("480", "1", "-1", "1e9"))}, 640]'
    prior = f'{{{size}, "counts": "{"".join(rng.choices("0123456789`aPo~", k=rng.randrange(60)))}"}}'
    value = rng.choice((number(rng), f'"{rng.choice(TEXTS)}"', f"[{number(rng)}, 0, 9, 9]", prior))
    body = f'{{"clicks": [{{"x": 1, "y": 1}}], "{name}": {value}}}'
    return http.post(f"/v1/images/{image_id}/mask", content=body)


def wrong_json(http: httpx.Client, rng: random.Random, image_id: str) -> Reply:
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
    path = rng.choice((f"/v1/images/{image_id}/mask", f"/v1/images/{image_id}/masks", "/v1/segment"))
    return http.post(path, content=rng.choice(bodies))


def wrong_base64(http: httpx.Client, rng: random.Random, image_id: str) -> Reply:
    """An image in the request that is none."""
    text = rng.choice((*TEXTS, base64.b64encode(rng.randbytes(200)).decode()))
    return http.post("/v1/segment", content=f'{{"image": "{text}", "clicks": [{{"x": 1, "y": 1}}]}}')


def wrong_image(http: httpx.Client, rng: random.Random, image_id: str) -> Reply:
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


def wrong_route(http: httpx.Client, rng: random.Random, image_id: str) -> Reply:
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


def huge_header(http: httpx.Client, rng: random.Random, image_id: str) -> Reply:
    """Headers that are long, or many, or strange."""
    value = "a" * rng.choice((10, 1000, 60_000))
    name = rng.choice(("X-Request-Id", "X-Model-Alias", "Authorization", "Cookie", "Content-Type"))
    return http.post(f"/v1/images/{image_id}/mask", content=b"{}", headers={name: value})


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
)  # fmt: skip


def attack(url: str, image_id: str, seed: int, requests: int) -> Counter[str]:
    """Send hostile requests one after another; return how they were answered."""
    rng, answers = random.Random(seed), Counter[str]()
    attacks, weights = zip(*ATTACKS, strict=True)
    with httpx.Client(base_url=url, timeout=60, headers={"Content-Type": "application/json"}) as http:
        for _ in range(requests):
            (chosen,) = rng.choices(attacks, weights)
            try:
                answers[str(chosen(http, rng, image_id).status_code)] += 1
            except httpx.HTTPError as error:  # the connection was cut: by a header that is too long, say
                answers[type(error).__name__] += 1
    return answers


def slow_bodies(url: str, count: int) -> list[socket.socket]:
    """Requests whose bodies never come."""
    host, port = url.removeprefix("http://").split(":")
    opened = []
    for _ in range(count):
        connection = socket.create_connection((host, int(port)))
        connection.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        opened.append(connection)
    return opened


def rows(requests: int) -> Iterator[Row]:
    """Measure."""
    settings = {"max_pixels": 10_000_000, "cache_bytes": 32 * 2**20, "image_bytes": 64 * 2**20}
    with serving_scenes(**settings, deadline_seconds=20) as url:
        yield from _rows(url, requests)


def attacks(url: str, image_id: str, seed: int, requests: int) -> Counter[str]:
    """Send hostile requests from several threads; return how they were answered."""
    with ThreadPoolExecutor(THREADS) as pool:
        seeds = range(THREADS * seed, THREADS * (seed + 1))
        each = [pool.submit(attack, url, image_id, one, requests // THREADS) for one in seeds]
    return sum((one.result() for one in each), Counter[str]())


def _rows(url: str, requests: int) -> Iterator[Row]:
    image_id = upload(url)
    attacks(url, image_id, 0, requests // 10)  # caches and thread pools fill
    before, actors = resident_mb(), sorted(replicas("Segmenter") + replicas("Ingress"))
    slow, start = slow_bodies(url, 20), time.monotonic()
    answers = attacks(url, image_id, 1, requests)
    seconds = time.monotonic() - start
    for connection in slow:
        connection.close()
    failures = sum(n for status, n in answers.items() if status.startswith("5") and status != "503")
    good = {"clicks": [{"x": 1, "y": 1}]}
    still = httpx.post(f"{url}/v1/images/{image_id}/mask", json=good, timeout=60).status_code
    print(json.dumps(dict(answers.most_common())))
    yield row("hostile_requests", sum(answers.values()), "")
    yield row("hostile_requests_per_second", sum(answers.values()) / seconds, "/s")
    yield row("hostile_5xx", failures, "", at_most=0)
    yield row("hostile_503", answers["503"], "")
    restarted = {*actors} ^ {*replicas("Segmenter"), *replicas("Ingress")}
    yield row("hostile_restarted_replicas", len(restarted), "", at_most=0)
    yield row("hostile_rss_growth_mb", resident_mb() - before, "MB", at_most=100)
    yield row("requests_left_in_hand", metric(url, "mst_requests_in_hand") - 1, "", at_most=len(slow))
    yield row("status_of_a_good_click_after", still, "", at_most=200)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    report("serve_hostile", rows(parser.parse_args().requests))


if __name__ == "__main__":
    main()

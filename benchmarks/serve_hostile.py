"""What nobody should send, a hundred thousand times: `make bench-serve_hostile`.

    .venv/bin/python -m benchmarks.serve_hostile --requests 5000

Each request is drawn from a seed: wrong JSON, clicks that are no numbers or nowhere, bad base64 and run
lengths, images that are broken, cut short or bombs, unknown routes and methods, huge headers, bodies that
never end; two in five go to the routes of other tools' protocols. The server must answer all of them, with no
status of 500 or more but 503, and keep its memory.
"""

import argparse
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.serve_faults import replicas
from benchmarks.shared.harness import Row, report, row
from benchmarks.shared.hostile import ATTACKS, Target
from benchmarks.shared.serving import metric, resident_by_process, serving_scenes, upload

THREADS = 8
WARM_UP = 10_000  # requests until caches, heaps and thread pools have the size that they keep


def attack(url: str, target: Target, seed: int, requests: int) -> Counter[str]:
    """Send hostile requests one after another; return how they were answered."""
    rng, answers = random.Random(seed), Counter[str]()
    attacks, weights = zip(*ATTACKS, strict=True)
    with httpx.Client(base_url=url, timeout=60, headers={"Content-Type": "application/json"}) as http:
        for _ in range(requests):
            (chosen,) = rng.choices(attacks, weights)
            try:
                answers[str(chosen(http, rng, target).status_code)] += 1
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


def attacks(url: str, target: Target, seed: int, requests: int) -> Counter[str]:
    """Send hostile requests from several threads; return how they were answered."""
    with ThreadPoolExecutor(THREADS) as pool:
        seeds = range(THREADS * seed, THREADS * (seed + 1))
        each = [pool.submit(attack, url, target, one, requests // THREADS) for one in seeds]
    return sum((one.result() for one in each), Counter[str]())


def _rows(url: str, requests: int) -> Iterator[Row]:
    target = Target(upload(url), httpx.get(f"{url}/readyz", timeout=60).json()["name"])
    attacks(url, target, 0, WARM_UP)
    before, actors = resident_by_process(), sorted(replicas("Segmenter") + replicas("Ingress"))
    slow, start = slow_bodies(url, 20), time.monotonic()
    answers = attacks(url, target, 1, requests)
    seconds = time.monotonic() - start
    for connection in slow:
        connection.close()
    failures = sum(n for status, n in answers.items() if status.startswith("5") and status != "503")
    good = {"clicks": [{"x": 1, "y": 1}]}
    still = httpx.post(f"{url}/v1/images/{target.image_id}/mask", json=good, timeout=60).status_code
    print(json.dumps(dict(answers.most_common())))
    yield row("hostile_requests", sum(answers.values()), "")
    yield row("hostile_requests_per_second", sum(answers.values()) / seconds, "/s")
    yield row("hostile_5xx", failures, "", at_most=0)
    yield row("hostile_503", answers["503"], "")
    restarted = {*actors} ^ {*replicas("Segmenter"), *replicas("Ingress")}
    yield row("hostile_restarted_replicas", len(restarted), "", at_most=0)
    after = resident_by_process()
    growth = {name: round(mb - before.get(name, 0), 1) for name, mb in after.items()}
    print(json.dumps({name: mb for name, mb in growth.items() if abs(mb) >= 1}))
    total = sum(after.values()) - sum(before.values())
    yield row("hostile_rss_growth_mb", total, "MB", at_most=100)
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

"""What serving costs beside the model, alone, together and far beyond what it can: `make bench-serve`.

    .venv/bin/python -m benchmarks.serve --checkpoint checkpoints/mst_small --precision auto

Without a checkpoint it serves random weights of MST-tiny at 448 x 448: their masks are worth nothing, their
time is a model's. The raw model has a process of its own and as many cores as the server's one replica; it
runs by turns with the server, which is there but idle then. Images have 640 x 480 pixels.
"""

import argparse
import asyncio
import base64
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from functools import cache
from itertools import product
from pathlib import Path
from unittest.mock import patch

import httpx
import numpy as np
import torch

from benchmarks.shared.harness import Row, report, row
from benchmarks.shared.serving import (
    HEIGHT,
    WIDTH,
    Annotator,
    annotate,
    image_folder,
    median_ms,
    metric,
    photo,
    resident_mb,
    series,
    serving,
    upload,
)
from mst.checkpoint import save_checkpoint
from mst.clicks import Click
from mst.config import Config, ModelConfig
from mst.data.pixels.images import decode_image
from mst.model import MST
from mst.predictor import Crop, Prediction, forwards_of_click, next_crop
from serve.inference.model import ServedModel
from serve.memory import MALLOC_OF_MODEL
from serve.settings import ServeSettings
from serve.state.known import Known

CLIENTS = 16
BATCH = 8
PHONE, LARGEST = (4000, 3000), (7680, 5170)  # width and height of photos: 12 and 39.7 megapixels
_RAW_CLICKS = 4 * BATCH
_ROUNDS = 3  # by turns with the raw model, on a machine whose load changes


def random_checkpoint(folder: Path) -> Path:
    """MST-tiny with random weights."""
    torch.manual_seed(0)
    config = Config(model=ModelConfig(size="tiny", image_size=448))
    save_checkpoint(folder / "random", MST(config.model).state_dict(), config)
    return folder / "random"


class RawModel:
    """The model without a server: in a process of its own, with the environment of the server's."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with patch.dict(os.environ, MALLOC_OF_MODEL):
            self.forward_ms()

    def forward_ms(self) -> float:
        """What a forward of one crop of the model's own side takes."""
        return self._process.submit(_forward_ms, self._settings).result()

    def first_clicks(self, seconds: float) -> float:
        """First clicks a second, in full batches."""
        return self._process.submit(_first_clicks_a_second, self._settings, seconds).result()

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()


@cache
def _raw(settings: ServeSettings) -> tuple[ServedModel, list[list[Crop]]]:
    torch.set_num_threads(settings.threads())
    model = ServedModel(settings)
    return model, _first_clicks(model, _RAW_CLICKS)


def _forward_ms(settings: ServeSettings) -> float:
    model, batches = _raw(settings)
    whole = next(crop for crops in batches for crop in crops if crop.side == model.version.image_size)
    return 1000 * statistics.median(model.answer([whole])[0].seconds for _ in range(3))


def _first_clicks_a_second(settings: ServeSettings, seconds: float) -> float:
    model, batches = _raw(settings)
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for crops in batches:
            model.answer(crops)
        rounds += 1
    return rounds * _RAW_CLICKS / (time.perf_counter() - start)


def _first_clicks(model: ServedModel, count: int) -> list[list[Crop]]:
    """What the forwards of an annotator's first clicks read, those of one side in full batches."""
    info, image, rng = model.version, decode_image(photo()), np.random.default_rng(0)
    clicks = [(Click(int(rng.integers(HEIGHT)), int(rng.integers(WIDTH)), True),) for _ in range(count)]
    found: list[Prediction | None] = [None] * count
    by_side: defaultdict[int, list[Crop]] = defaultdict(list)
    for _ in range(forwards_of_click(None, info.eval)):
        for number, each in enumerate(clicks):
            crop = next_crop(image, each, found[number], info.image_size, info.eval)
            by_side[crop.side].append(crop)
            (answer,) = model.answer([crop])
            known = Known(each, crop.box, crop.side, answer.logits, answer.selected)
            found[number] = known.paste((image.shape[0], image.shape[1]))
    return [
        crops[start : start + BATCH] for crops in by_side.values() for start in range(0, len(crops), BATCH)
    ]


def alone(url: str, image_id: str, model: RawModel, objects: int = 20) -> Iterator[Row]:
    """One annotator, two clicks for each object: what they take, and where; what a repeated one takes."""
    rng = np.random.default_rng(0)
    first, further, repeated, raw = [], [], [], []
    with httpx.Client(base_url=url, timeout=60) as http:
        for _ in range(objects):
            clicks = [
                {"x": float(rng.uniform(0, WIDTH)), "y": float(rng.uniform(0, HEIGHT))} for _ in range(2)
            ]
            first.append(_parts(http, image_id, clicks[:1]))
            further.append(_parts(http, image_id, clicks))
            repeated.append(_parts(http, image_id, clicks))
            raw.append(model.forward_ms())

    def median(parts: list[dict[str, float]], name: str) -> float:
        return statistics.median(each[name] for each in parts)

    yield row("first_click_ms", median(first, "whole"), "ms", at_most=350)
    yield row("of_it_forwards_ms", median(first, "forward"), "ms")
    yield row("further_click_ms", median(further, "whole"), "ms", at_most=350)
    yield row("of_it_the_forward_ms", median(further, "forward"), "ms")
    over = [each["forward"] / alike for each, alike in zip(further, raw, strict=True)]
    yield row("of_it_the_raw_model_ms", statistics.median(raw), "ms")
    yield row("forward_over_raw_model", statistics.median(over))
    yield row("http_overhead_ms", median(further, "overhead"), "ms", at_most=15)
    yield row("of_it_http_and_proxies_ms", median(further, "http"), "ms")
    yield row("of_it_the_segmenters_call_ms", median(further, "call"), "ms")
    yield row("of_it_our_own_work_ms", median(further, "own"), "ms")
    yield row("cache_hit_ms", median(repeated, "whole"), "ms", at_most=15)


def _parts(http: httpx.Client, image_id: str, clicks: list[dict[str, float]]) -> dict[str, float]:
    """Ask for a mask; what took how many milliseconds."""
    start = time.perf_counter()
    reply = http.post(f"/v1/images/{image_id}/mask", json={"clicks": clicks}).raise_for_status()
    whole = 1000 * (time.perf_counter() - start)
    said = reply.json()["timing_ms"]
    return {
        "whole": whole,
        "forward": said["forward"],
        "overhead": whole - said["forward"],
        "http": whole - said["total"],
        "call": said["model"] - said["forward"],
        "own": said["total"] - said["model"],
    }


def shared(url: str) -> Iterator[Row]:
    """What is computed for quick clicks and for large photos, and the memory of the largest."""
    small, large = upload(url, 1), upload(url, 1, PHONE)
    with httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(8) as pool:

        def ask(clicks: list[dict[str, float]], image_id: str = small) -> dict[str, float]:
            return _parts(http, image_id, clicks)

        def ask_together(requests: list[list[dict[str, float]]], pause: float) -> float:
            """Send them without waiting for replies; return how many forwards they took."""
            before, replies = _forwards(url), []
            for each in requests:
                replies.append(pool.submit(ask, each))
                time.sleep(pause)
            for reply in replies:
                reply.result()
            return _forwards(url) - before

        quick = [{"x": 101.0 + number, "y": 200.0 + 9 * number} for number in range(5)]
        yield row(
            "forwards_of_five_quick_clicks",
            ask_together([quick[: number + 1] for number in range(5)], 0.15),
            "",
            at_most=6,
        )
        equal = [[{"x": 402.0, "y": 100.0}]] * 3
        yield row("forwards_of_three_equal_requests", ask_together(equal, 0), "", at_most=2)

        objects = [[{"x": 61.0 + 50 * number, "y": 240.0}] for number in range(10)]
        for each in objects:
            ask(_scaled(each), large)
            ask(each)
        before, overheads = _forwards(url), defaultdict[str, list[float]](list)
        for click in range(3):
            for each in objects:
                each.append({"x": each[0]["x"] + 7 * click, "y": 233.0 - 7 * click})
                overheads["large"].append(ask(_scaled(each), large)["overhead"])
        taken = (_forwards(url) - before) / len(overheads["large"])
        yield row("forwards_a_click_12mp_ten_objects", taken, "", at_most=1.1)
        for _ in range(_ROUNDS):
            for each in objects:
                each.append({"x": each[-1]["x"], "y": each[-1]["y"] + 5})
                overheads["phone"].append(ask(_scaled(each), large)["overhead"])
                overheads["small"].append(ask(each)["overhead"])
        over = statistics.median(overheads["phone"]) / statistics.median(overheads["small"])
        yield row("click_12mp_over_640", over, at_most=1.5)
    yield row("rss_growth_nine_40mp_mb", _growth_of_largest(url), "MB", at_most=1500)


def replicas(settings: ServeSettings) -> Iterator[Row]:
    """What clicks on ten objects, each from a connection of its own, cost three HTTP replicas and one."""
    taken = {}
    for number in (1, 3):
        with serving(settings.model_copy(update={"http_replicas": number})) as url:
            image_id = upload(url, 2)
            for count, left in product(range(1, 5), range(10)):
                clicks = [{"x": 61 + 50 * left, "y": 200 + 9 * each} for each in range(count)]
                address = f"{url}/v1/images/{image_id}/mask"
                httpx.post(address, json={"clicks": clicks}, timeout=60).raise_for_status()
            found: dict[str, float] = {}  # of each replica: which of them answers is not ours to say
            for _ in range(100):
                found |= series(url, "mst_batch_size_count")
            taken[number] = sum(found.values())
    yield row("forwards_three_replicas_over_one", taken[3] / taken[1], at_most=1.1)


def _scaled(clicks: list[dict[str, float]]) -> list[dict[str, float]]:
    """The same clicks on the photo of a phone."""
    return [{"x": each["x"] * PHONE[0] / WIDTH, "y": each["y"] * PHONE[1] / HEIGHT} for each in clicks]


def _forwards(url: str) -> float:
    return metric(url, "mst_batch_size_count")


def _growth_of_largest(url: str) -> float:
    """What the server's processes grow by while nine photos of 39.7 megapixels are answered at once."""
    body = {"image": base64.b64encode(photo(1, LARGEST)).decode(), "clicks": [{"x": 3000, "y": 2000}]}
    before = highest = resident_mb()
    with ThreadPoolExecutor(9) as pool:
        replies = [pool.submit(httpx.post, f"{url}/v1/segment", json=body, timeout=180) for _ in range(9)]
        while not all(each.done() for each in replies):
            highest = max(highest, resident_mb())
            time.sleep(0.05)
    for each in replies:
        each.result().raise_for_status()
    return highest - before


def together(url: str, image_id: str, model: RawModel, seconds: float) -> Iterator[Row]:
    """Sixteen annotators who click as fast as they get their masks, by turns with the model itself."""
    before = {name: metric(url, f"mst_batch_size_{name}") for name in ("sum", "count")}
    served, raw, spread = [], [], []
    for number in range(_ROUNDS):
        annotators = [Annotator(url, image_id, CLIENTS * number + each) for each in range(CLIENTS)]
        served.append(_throughput(annotators, seconds))
        medians = [median_ms(each.seconds or [seconds]) for each in annotators]
        spread.append(max(medians) / min(medians))
        raw.append(model.first_clicks(seconds))
    forwards = {name: metric(url, f"mst_batch_size_{name}") - before[name] for name in before}
    yield row("throughput_16_clients", statistics.mean(served), "/s")
    yield row("raw_model", statistics.mean(raw), "/s")
    yield row("throughput_16_clients_over_model", sum(served) / sum(raw), at_least=0.9)
    yield row("mean_batch", forwards["sum"] / max(forwards["count"], 1), "clicks")
    yield row("slowest_over_fastest_client", statistics.median(spread), at_most=2)


def _throughput(annotators: list[Annotator], seconds: float) -> float:
    """Clicks that are answered in a second, once there is a queue."""
    answered: list[int] = []

    def watch() -> None:
        for _ in range(2):
            time.sleep(seconds)
            answered.append(sum(len(each.seconds) for each in annotators))

    annotate(annotators, watch)
    return (answered[1] - answered[0]) / seconds


def overload(url: str, image_id: str, seconds: float, rate: float) -> Iterator[Row]:
    """Ten times as many clicks as it can answer, whoever waits."""
    before = resident_mb()
    statuses, highest = asyncio.run(_flood(url, image_id, seconds, rate))
    start = time.perf_counter()
    with httpx.Client(base_url=url, timeout=60) as http:
        while (
            http.post(f"/v1/images/{image_id}/mask", json={"clicks": [{"x": 1, "y": 1}]}).status_code != 200
        ):
            time.sleep(0.05)
    yield row("overload_rate", sum(statuses.values()) / seconds, "/s")
    yield row("overload_answered", statuses["200"], "")
    yield row("overload_refused", statuses["503"] + statuses["429"], "")
    unexpected = sum(statuses.values()) - statuses["200"] - statuses["503"] - statuses["429"]
    yield row("overload_unexpected_statuses", unexpected, "", at_most=0)
    yield row("overload_rss_growth_mb", highest - before, "MB", at_most=500)
    yield row("overload_recovery", time.perf_counter() - start, "s", at_most=10)


async def _flood(url: str, image_id: str, seconds: float, rate: float) -> tuple[Counter[str], float]:
    statuses: Counter[str] = Counter()
    rng, highest, tasks = np.random.default_rng(0), 0.0, set()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:

        async def click(x: float, y: float) -> None:
            try:
                reply = await http.post(f"/v1/images/{image_id}/mask", json={"clicks": [{"x": x, "y": y}]})
                statuses[str(reply.status_code)] += 1
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1

        start = time.perf_counter()
        while time.perf_counter() < start + seconds:
            tasks.add(asyncio.create_task(click(rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT))))
            await asyncio.sleep(max(0, start + len(tasks) / rate - time.perf_counter()))
            if len(tasks) % 100 == 0:
                highest = max(highest, resident_mb())
        await asyncio.gather(*tasks)
    return statuses, max(highest, resident_mb())


def rows(settings: ServeSettings, seconds: float) -> Iterator[Row]:
    """Measure."""
    with closing(RawModel(settings)) as model, serving(settings) as url:
        image_id = upload(url)
        yield from alone(url, image_id, model)
        yield from shared(url)
        measured = list(together(url, image_id, model, seconds))
        yield from measured
        answered = next(each.value for each in measured if each.name == "throughput_16_clients")
        yield from overload(url, image_id, seconds, 10 * answered)
    yield from replicas(settings)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="folder; random weights if not given")
    parser.add_argument("--seconds", type=float, default=60.0, help="for which each load is measured")
    parser.add_argument("--cpus", type=int, default=2, help="cores of the model")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="fp32", help="precision of the forward pass"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, image_folder() as images:
        checkpoint = arguments.checkpoint or random_checkpoint(Path(folder))
        settings = ServeSettings(
            model=str(checkpoint), image_store=images, max_batch=BATCH, precision=arguments.precision,
            cpus_per_replica=arguments.cpus, threads_per_replica=arguments.cpus, cache_bytes=64 * 2**20,
        )  # fmt: skip
        report("serve", rows(settings, arguments.seconds))


if __name__ == "__main__":
    main()

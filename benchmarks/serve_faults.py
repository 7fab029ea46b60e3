"""What annotators notice when parts of the server die, are replaced, come and go: `make bench-serve_faults`.

    .venv/bin/python -m benchmarks.serve_faults --seconds 20

Four annotators click without a pause through `mst.client`: a click fails if its mask never comes. Tries that
are answered 5xx, or not at all, are the raw failures. While the champion moves, and replicas come and go,
nobody tries again. The model is `checkpoints/scenes_tiny`.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import ray
import torch
from ray import serve

from benchmarks.shared.harness import Row, report, row
from benchmarks.shared.serving import (
    APPLICATION,
    CHECKPOINT,
    Annotator,
    annotate,
    make_champion,
    serving_scenes,
    total,
    upload,
    wait_for,
)
from mst.checkpoint import load_model, save_checkpoint

ANNOTATORS = 4
CHAIN = [{"x": 100 + 40 * number, "y": 200, "is_positive": number % 3 < 2} for number in range(6)]


def replicas(deployment: str) -> list[str]:
    """The names of a deployment's living actors."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if f"#{deployment}#" in each["name"]]


def kill_one(deployment: str) -> bool:
    """Kill a replica, whatever it is doing; return whether there was one."""
    names = replicas(deployment)
    if names:
        ray.kill(ray.get_actor(random.choice(names), namespace="serve"))
    return bool(names)


def killing(deployment: str, seconds: float, every: float) -> int:
    """Kill a replica from time to time; return how many were."""
    end, killed = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        killed += kill_one(deployment)
        time.sleep(every)
    return killed


def chain(url: str, image_id: str) -> list[object]:
    """The masks after each of some clicks."""
    masks = []
    with httpx.Client(base_url=url, timeout=60) as http:
        for number in range(1, len(CHAIN) + 1):
            reply = http.post(f"/v1/images/{image_id}/mask", json={"clicks": CHAIN[:number]})
            masks.append(reply.raise_for_status().json()["mask"]["counts"])
    return masks


def under_fire(url: str, name: str, deployment: str, seconds: float, every: float) -> Iterator[Row]:
    """Annotate while replicas of a deployment are killed."""
    image_id = upload(url)
    undisturbed = chain(url, image_id)
    annotators = [Annotator(url, image_id, seed, is_patient=True) for seed in range(ANNOTATORS)]
    killed: list[int] = []
    annotate(annotators, lambda: killed.append(killing(deployment, seconds, every)))
    statuses = total(annotators)
    tries, masks = sum(statuses.values()), statuses["200"]
    yield row(f"{name}_kills", killed[0], "")
    yield row(f"{name}_masks", masks, "")
    yield row(f"{name}_failed_clicks", sum(each.failed for each in annotators), "", at_most=0)
    yield row(f"{name}_raw_failures", tries - masks, "")
    yield row(f"{name}_raw_failures_share", (tries - masks) / tries, at_most=0.1)
    yield row(f"{name}_longest_click", max(max(each.seconds) for each in annotators), "s")
    wait_for(lambda: httpx.get(f"{url}/readyz", timeout=5).is_success, 60)
    kill_one("Ingress")  # what it remembers, too: all clicks are replayed
    wait_for(lambda: httpx.get(f"{url}/readyz", timeout=5).is_success, 60)
    different = sum(one != other for one, other in zip(undisturbed, chain(url, image_id), strict=True))
    yield row(f"{name}_different_masks_after_replay", different, "", at_most=0)


def changed(folder: Path, factor: float) -> Path:
    """The shipped checkpoint with other weights in its last layer."""
    model, config = load_model(CHECKPOINT)
    with torch.no_grad():
        model.head.conv_seg.weight.mul_(factor)
    save_checkpoint(folder, model.state_dict(), config)
    return folder


def swapped(url: str, uri: str, folder: Path) -> Iterator[Row]:
    """Annotate while the champion moves: to another version, to a broken one, to a third."""
    image_id = upload(url)
    wait_for(lambda: httpx.get(f"{url}/readyz", timeout=10).is_success, 60)
    annotators = [Annotator(url, image_id, seed) for seed in range(ANNOTATORS)]
    taken: dict[str, float] = {}

    def ready() -> dict[str, object]:
        found: dict[str, object] = httpx.get(f"{url}/readyz", timeout=10).json()
        return found

    def move() -> None:
        time.sleep(2)
        make_champion(uri, changed(folder / "two", 0.9))
        taken["good"] = wait_for(lambda: ready().get("version") == "2", 90)
        make_champion(uri, changed(folder / "three", float("nan")))
        taken["broken"] = wait_for(lambda: bool(ready().get("rejected")), 90)
        time.sleep(3)
        make_champion(uri, changed(folder / "four", 0.8))
        taken["next"] = wait_for(lambda: ready().get("version") == "4", 90)
        time.sleep(2)

    annotate(annotators, move)
    statuses, versions = total(annotators), {each for one in annotators for each in one.versions}
    yield row("swap_masks", statuses["200"], "")
    yield row("swap_failed_clicks", sum(statuses.values()) - statuses["200"], "", at_most=0)
    yield row("swap_seconds", taken["good"], "s")
    yield row("swap_broken_named_after", taken["broken"], "s", at_most=90)
    yield row("swap_versions_seen", len(versions), "", at_least=3)
    yield row(
        "swap_masks_of_broken_version", sum(one.versions.count("3") for one in annotators), "", at_most=0
    )


def running() -> int:
    """Segmenter replicas that answer, as `serve status` has it."""
    states = serve.status().applications[APPLICATION].deployments["Segmenter"].replica_states
    return int({str(getattr(key, "value", key)): count for key, count in states.items()}.get("RUNNING", 0))


def followed(url: str, seconds: float) -> Iterator[Row]:
    """Sixteen annotators come, and go."""
    image_id = upload(url)
    before, most = running(), 0
    annotators = [Annotator(url, image_id, seed) for seed in range(16)]

    def watch() -> None:
        nonlocal most
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            most = max(most, running())
            time.sleep(0.5)

    annotate(annotators, watch)
    statuses = total(annotators)
    yield row("replicas_before", before, "", at_most=1)
    yield row("replicas_under_load", most, "", at_least=2)
    yield row("replicas_down_again_after", wait_for(lambda: running() == 1, 120), "s", at_most=120)
    yield row("scaling_failed_clicks", sum(statuses.values()) - statuses["200"], "", at_most=0)


def rows(seconds: float) -> Iterator[Row]:
    """Measure."""
    patient = {"deadline_seconds": 60}
    with serving_scenes(**patient, max_batch=4, min_replicas=4, max_replicas=4) as url:
        yield from under_fire(url, "segmenter", "Segmenter", seconds, 2)
        yield from under_fire(url, "ingress", "Ingress", seconds, 10)
    delays = {"upscale_delay_seconds": 1, "downscale_delay_seconds": 5}
    with serving_scenes(**patient, **delays, max_batch=2, max_replicas=3) as url:
        yield from followed(url, max(seconds, 45))
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        make_champion(uri, changed(Path(folder) / "one", 1.0))
        champion = {"model": "models:/mst@champion", "tracking_uri": uri, "poll_seconds": 2}
        with serving_scenes(**patient, **champion, max_batch=4, min_replicas=2, max_replicas=2) as url:
            yield from swapped(url, uri, Path(folder))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="seconds that each series of kills lasts"
    )
    arguments = parser.parse_args()
    report("serve_faults", rows(arguments.seconds))


if __name__ == "__main__":
    main()

"""The whole platform in some minutes: data, training, sweep, registry, server, and clicks over HTTP.

    make demo

Runs the same commands that a user would, with a registry of its own, and fails if the model that it trains
and serves is not clearly better than itself untrained and than disks around the clicks. In the end the model
that ships is served, and clicks on photos.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import skimage.data
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from upath import UPath

from mst.checkpoint import read_config, verify
from mst.clicks import Click
from mst.client import Client
from mst.data.annotations import Sample
from mst.data.sources import read_samples
from mst.evaluation import ObjectRecord, Open, Summary, evaluate, summarize
from mst.evaluation.peers import open_click_disks
from mst.pictures import strip
from mst.predictor import Predictor
from mst.training import new_state
from mst.training.checkpoints import best

PROJECT = Path(__file__).resolve().parent.parent
DATA = PROJECT / "data" / "synthetic"
OUT = PROJECT / "out" / "demo"
RUNS = OUT / "runs"
REGISTRY = f"sqlite:///{OUT / 'mlflow.db'}"
SHIPPED = PROJECT / "checkpoints" / "mst_small"

MAX_CLICKS = 10
SHOWN = (1, 3, 5, 10)
OBJECTS = 40
PICTURES = 8
PHOTOS = {
    "astronaut": [Click(350, 230, True), Click(100, 215, True)],
    "chelsea": [Click(170, 230, True)],
    "coffee": [Click(150, 330, True)],
}
"""Clicks on photos of `skimage.data`, which are in the public domain or free (CC0)."""
DISKS, UNTRAINED, CHAMPION = "disks around the clicks", "the same, untrained", "champion, over HTTP"
MARGIN = 0.10  # by which the champion's mean IoU must exceed the others'

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    "MLFLOW_TRACKING_URI": REGISTRY,
    # Ray warns of many processes wherever a sweep has more of them than there are cores.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "maximum expected startup concurrency",
}  # Ray and a registry of the demo's own, whatever a user works with

console = Console(highlight=False)


def main() -> None:
    """Run the demo."""
    start = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    RUNS.mkdir(parents=True)
    step("Draw scenes of textured shapes")
    command("-m", "mst.data.synthetic", "--out", DATA, "--train", 400, "--val", 40, "--test", 60)

    step("Train on two Ray workers: a shipped ViT, all that follows it random")
    settings = ("--recipe", "demo", "--data.root", DATA, "--storage", RUNS)
    command("pipelines/train.py", *settings, "--name", "train", "--num-workers", 2)

    step("Sweep tokens, losses and learning rate, with early stopping")
    sweep = ("--name", "sweep", "--space", "smoke", "--trials", 4, "--train.init", trained())
    short = ("--train.reset=", "--train.epochs", 2, "--train.samples_per_epoch", 320)
    command("pipelines/tune.py", *settings, *sweep, *short)

    step("Offer the best to the registry, whose first champion it becomes")
    champion = winner()
    held_out = f"coco:{DATA.relative_to(PROJECT)}/annotations/instances_test.json"
    compare = ("--data", held_out, "--max-objects", OBJECTS, "--max-clicks", MAX_CLICKS)
    # Some minutes of training do not surely beat GrabCut, as the rules ask of a first champion.
    command("pipelines/promote.py", "--run", champion.parent, *compare, "--force", "a demo")

    step("Serve it and click on objects that it has never seen")
    samples = list(read_samples(["coco:annotations/instances_test.json"], UPath(DATA)).spread(OBJECTS))
    with served("models:/mst@champion") as url:
        records = click_on(samples, Client(url), untrained_like(champion))
        write_pictures(Client(url), samples[:PICTURES], records[CHAMPION][:PICTURES])
    results = {name: summarize(each, MAX_CLICKS) for name, each in records.items()}
    table(results)
    figures = {name: summary.metrics() for name, summary in results.items()}
    (OUT / "summary.json").write_text(json.dumps(figures, indent=2))

    step("Serve the model that ships and click on photos")
    with served(SHIPPED.relative_to(PROJECT)) as url:
        click_on_photos(Client(url))
    out = OUT.relative_to(PROJECT)
    console.print(f"pictures: {out}/*.png      took {time.monotonic() - start:.0f} s")
    console.print(f"MLflow:   make ui REGISTRY=sqlite:///{out}/mlflow.db   http://127.0.0.1:5000")
    console.print("server:   make serve                                  http://127.0.0.1:8000")
    check(results)


def step(title: str) -> None:
    """Announce a part of the demo."""
    console.rule(f"[bold]{title}", align="left")


def command(*arguments: object) -> None:
    """Run a Python command of the project, as it is shown; if it fails, so does the demo."""
    words = [str(each.relative_to(PROJECT)) if isinstance(each, Path) else str(each) for each in arguments]
    show(shlex.join(words))
    code = subprocess.run([sys.executable, *words], cwd=PROJECT, env=ENVIRONMENT, check=False).returncode
    if code:
        sys.exit(f"the demo failed: this command ended with exit code {code}")


def show(words: str) -> None:
    """Show a command before it runs."""
    console.print(f"$ python {words}", style="dim", soft_wrap=True, markup=False)


def score(checkpoint: Path) -> float:
    """Return a checkpoint's score in validation."""
    return float(verify(checkpoint)["metrics"]["val_score"])


def trained() -> Path:
    """Return the best checkpoint of the training."""
    return Path(str(best(UPath(RUNS / "train")).path))


def winner() -> Path:
    """Return the better of the trained checkpoint and the sweep's best; both saw the same objects."""
    swept = Path(json.loads((RUNS / "sweep" / "sweep.json").read_text())["trials"][0]["checkpoint"])
    chosen = max((trained(), swept), key=score)
    console.print(f"validation IoU: trained {score(trained()):.3f}, best of the sweep {score(swept):.3f}")
    return chosen


@contextmanager
def served(model: object) -> Iterator[str]:
    """Serve a model as long as the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = ["-m", "serve", "--model", str(model), "--port", str(port)]
    show(shlex.join(words))
    server = subprocess.Popen([sys.executable, *words], cwd=PROJECT, env=ENVIRONMENT)
    try:
        wait_until_ready(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers that its model is loaded."""
    for _ in range(180):
        if server.poll() is not None:
            sys.exit(f"the demo failed: the server ended with exit code {server.returncode}")
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    sys.exit("the demo failed: the server was not ready after three minutes")


def untrained_like(champion: Path) -> Predictor:
    """Return the champion as it was before `train` began; the sweep's trials began with what that trained."""
    start = read_config(trained())
    config = start.model_copy(update={"model": read_config(champion).model})
    state, _ = new_state(config, torch.device("cpu"))
    return Predictor(state.model, config.eval)


def click_on(samples: list[Sample], client: Client, untrained: Predictor) -> dict[str, list[ObjectRecord]]:
    """Let the evaluation's click robot use the served champion and what it is compared with."""
    methods: dict[str, Open] = {
        DISKS: open_click_disks,
        UNTRAINED: untrained.open,
        CHAMPION: client.open,
    }
    return {name: evaluate(method, samples, MAX_CLICKS) for name, method in methods.items()}


def table(results: dict[str, Summary]) -> None:
    """Print how well each method did."""
    title = f"{OBJECTS} objects of {DATA.name}/test, at most {MAX_CLICKS} clicks each"
    out = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    out.add_column("", no_wrap=True)
    for column in (*(f"IoU@{click}" for click in SHOWN), "mean", "NoC@85", "ms/click"):
        out.add_column(column, justify="right")
    for name, summary in results.items():
        ious = (f"{summary.iou[click - 1]:.3f}" for click in SHOWN)
        speed = f"{1000 * summary.seconds_per_click:.0f}"
        out.add_row(name, *ious, f"{summary.mean_iou:.3f}", f"{summary.noc[85]:.2f}", speed)
    console.print(out)


def write_pictures(client: Client, samples: list[Sample], records: list[ObjectRecord]) -> None:
    """Draw image and clicks, the served mask after the first and the last click, and the truth."""
    for number, (sample, record) in enumerate(zip(samples, records, strict=True), 1):
        segment = client.open(sample.image)
        last = len(record.clicks)
        panels = [
            ("image and clicks", None),
            (f"mask after click 1: IoU {record.ious[0]:.2f}", segment(record.clicks[:1])),
            (f"mask after click {last}: IoU {record.ious[-1]:.2f}", segment(record.clicks)),
            ("truth", sample.mask),
        ]
        picture = strip(sample.image, record.clicks, panels)
        cv2.imwrite(str(OUT / f"object_{number}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def click_on_photos(client: Client) -> None:
    """Draw what clicks on photos are answered with, the first one alone and all of them."""
    for name, clicks in PHOTOS.items():
        image = getattr(skimage.data, name)()
        segment = client.open(image)
        counts = sorted({1, len(clicks)})
        masks = [(f"mask after click {count}", segment(clicks[:count])) for count in counts]
        picture = strip(image, clicks, [("image and clicks", None), *masks])
        cv2.imwrite(str(OUT / f"photo_{name}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def check(results: dict[str, Summary]) -> None:
    """End with an error unless the champion is clearly the best."""
    champion = results[CHAMPION].mean_iou
    for name in (DISKS, UNTRAINED):
        if champion < results[name].mean_iou + MARGIN:
            sys.exit(
                f"the demo failed: the champion's mean IoU of {champion:.3f} does not exceed that of "
                f"'{name}', {results[name].mean_iou:.3f}, by {MARGIN}"
            )
    console.print("[green]The champion clearly beats itself untrained and disks around the clicks.")


if __name__ == "__main__":
    main()

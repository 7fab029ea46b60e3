"""Where clicks enter the ViT: what a click costs against how many are needed, at equal samples.

    python -m benchmarks.studies.entries --seeds 2 --samples 2400

Every arm starts from DINOv2's weights and sees the same samples with the same clicks to start from; what lies
before its entry stays DINOv2's. One more arm has as many samples as fit into the time of entry 0. The picture
of NoC@90 against a click's operations is `out/bench/entries.png`.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.clicks import LATE
from benchmarks.shared.arms import (
    HEAD_FIRST,
    SHORT,
    Job,
    add_options,
    click_all,
    rows,
    train_all,
    training_minutes,
)
from benchmarks.shared.harness import OUT, report, row
from mst.command_line import parse, run
from mst.config import Config
from mst.model import MST
from mst.model.flops import flops_of_parts
from mst.overrides import override
from pipelines.recipes import build

PAPER = "entry_0"
SAME_TIME = "entry_12_same_time"
FASTER = 3
"""Times as many samples a second as entry 0 that entry 12 learns from (`make bench-clicks`)."""

_FROM_THERE_ON = {  # what lies before the entry is frozen all the time
    "train.frozen": ["encoder"],
    "train.freeze_epochs": SHORT["train.epochs"],
    "optim.lr": 1e-3,
    "optim.schedule": "cosine",
    "optim.backbone_lr_scale": 0.02,
    "optim.click_lr_scale": 1,
    "optim.fusion_lr_scale": 1,
}
ARMS: Mapping[str, Mapping[str, object]] = {
    PAPER: HEAD_FIRST,
    "entry_6": {"model.click_entry": 6, **_FROM_THERE_ON},
    "entry_10": {"model.click_entry": 10, "model.fusion_stages": 1, **_FROM_THERE_ON},
    "entry_12": {**LATE, **_FROM_THERE_ON},
    SAME_TIME: {**LATE, **_FROM_THERE_ON},
    "entry_12_convs": {**LATE, "model.head_convs": 2, **_FROM_THERE_ON},
}


def experiment(seed: int, arm: str, samples: int, precision: str) -> Config:
    """One run: an arm with a seed, which sees so many samples, or more in the same time."""
    samples *= FASTER if arm == SAME_TIME else 1
    budget = {
        **SHORT,
        "seed": seed,
        "train.samples_per_epoch": samples // 3,
        "train.precision": precision,
    }
    return override(build("mst_small_head"), {**budget, **ARMS[arm]})


def draw(clicks: Mapping[str, Sequence[float]], gmacs: Mapping[str, float], path: Path) -> None:
    """Draw NoC@90 with its interval against a click's operations, and what no other arm beats in both.

    Args:
        clicks: mean, low and high of NoC@90, by arm.
        gmacs: of a click, by arm.
        path: the PNG to write.
    """
    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    front, fewest = [], np.inf
    for arm in sorted(clicks, key=lambda each: (gmacs[each], clicks[each][0])):
        mean, low, high = clicks[arm]
        is_best = mean < fewest
        color = "#0b4f9e" if is_best else "#aab4be"
        axes.errorbar(gmacs[arm], mean, [[mean - low], [high - mean]], fmt="o", color=color, capsize=3)
        axes.annotate(
            arm.replace("_", " "), (gmacs[arm], mean), xytext=(6, 4), textcoords="offset points", fontsize=8
        )
        if is_best:
            front.append(arm)
            fewest = mean
    axes.step(
        [gmacs[arm] for arm in front], [clicks[arm][0] for arm in front], where="post", color="#0b4f9e", lw=1
    )
    axes.set(xscale="log", xlabel="operations of a click (GMAC)", ylabel="NoC@90, 95 % over images")
    costs = sorted(set(gmacs.values()))
    axes.set_xticks(costs, labels=[f"{each:.2g}" for each in costs])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_options(parser, "entries")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS)[1:], default=list(ARMS)[1:])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = parse(parser, None)
    jobs = {}
    for seed, arm in product(range(arguments.seeds), [PAPER, *arguments.arms]):
        config = experiment(seed, arm, arguments.samples, arguments.precision)
        jobs[Job(arm, seed)] = arguments.runs / f"{arm}_{arguments.samples}_{seed}", config
    checkpoints = train_all(jobs)
    records = click_all(checkpoints, arguments.objects, arguments.max_clicks)
    gmacs = {
        job.arm: flops_of_parts(MST(config.model)).click / 2e9
        for job, (_, config) in jobs.items()
        if not job.seed
    }
    found = list(rows(records, arguments.max_clicks, PAPER))
    values = {each.name: each.value for each in found}
    noc90 = {arm: [values[f"{arm}_noc90{end}"] for end in ("", "_low", "_high")] for arm in gmacs}
    draw(noc90, gmacs, OUT / "entries.png")
    costs = [row(f"{arm}_click", gmac, "GMAC") for arm, gmac in gmacs.items()]
    minutes = training_minutes({job: folder for job, (folder, _) in jobs.items()})
    report("entries", [*costs, *minutes, *found])


if __name__ == "__main__":
    run(main)

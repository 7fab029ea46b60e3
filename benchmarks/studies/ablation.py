"""What extra scales and the contrastive loss gain on photos, at equal budget: the paper's claim, tested.

    python -m benchmarks.studies.ablation --seeds 3
    python -m benchmarks.studies.ablation --init checkpoints/mst_small --max-clicks 10

With `--init` the arms go on from a model that has learnt, but for what makes the scales' tokens, which starts
anew: whether the scales help, rather than how soon an arm learns to segment at all.

Every arm starts from the same weights, sees the same samples with the same clicks to start from, as often as
there are seeds, and is then clicked on the same held-out objects by the protocol of the evaluation. A run is
one process with one thread, as many at once as there are cores; what is done is kept in `runs/ablation` and
found there again. The photos are made as `pipelines.recipes.photos.mst_small_head` says.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from benchmarks.shared.harness import Row, difference, report, row
from mst.command_line import count, parse, run
from mst.config import Config
from mst.evaluation import ObjectRecord
from mst.evaluation.statistics import bootstrap_interval, paired_comparison
from mst.overrides import override
from mst.training.checkpoints import newest
from pipelines import cluster
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Actors
from pipelines.promotion.comparison import Terms, evaluate_on
from pipelines.promotion.rules import nocs
from pipelines.recipes import build
from pipelines.storage import PROJECT

PHOTOS = PROJECT / "data" / "real"
BASELINE = "baseline"
ARMS: Mapping[str, Mapping[str, object]] = {
    BASELINE: {"model.patch_sizes": [], "loss.contrastive": 0},
    "mst": {"loss.contrastive": 0},
    "mst_cl": {"loss.contrastive": 0.1},
    "mst_cl_mlp": {"loss.contrastive": 0.1, "model.fusion_mlp_ratio": 4, "model.fusion_per_scale": True},
    "all_scales": {"loss.contrastive": 0.1, "model.scale_choice": "all"},
    "sweep_best": {"loss.contrastive": 0.1, "model.patch_sizes": [28], "model.k_ratio": 0.04},
}
"""What makes an arm; the last one is a sweep's best (docs/sweep.png)."""

BUDGET = {
    "model.image_size": 224,
    "optim.lr": 1.5e-3,
    "optim.schedule": "step",
    "optim.milestones": [1],  # then what follows the ViT learns at 1.5e-4, and the ViT at 1e-5
    "optim.backbone_lr_scale": 0.067,
    "optim.click_lr_scale": 0.33,
    "optim.fusion_lr_scale": 0.5,
    "optim.warmup_steps": 20,
    "train.freeze_epochs": 1,
    "train.epochs": 3,
    "train.batch_size": 8,
    "train.checkpoint_every": 0,
    "train.validate_every": 3,
    "train.val_objects": 4,
}
"""The recipe `mst_small_head`, in a third of its time; its second and third epoch train all."""


FROM_TRAINED = {
    "data.min_area": 0.01,
    "optim.lr": 5e-4,
    "optim.milestones": [2],
    "optim.backbone_lr_scale": 0.2,  # in the last epoch, of a tenth of the rate
    "optim.fusion_lr_scale": 0.1,  # at more they wreck in 40 steps what the frozen ViT says (docs/log.md)
    "train.frozen": ["backbone", "clicks"],
    "train.freeze_epochs": 2,
    "train.reset": ["fusions"],
}
"""What differs where the arms start from a trained model: only fusions and head learn, then all a little."""


def experiment(seed: int, arm: str, samples: int, init: Path | None = None) -> Config:
    """One run: an arm with a seed, which sees so many samples, maybe from a trained model."""
    budget = {**BUDGET, "seed": seed, "train.samples_per_epoch": samples // 3}
    trained = {**FROM_TRAINED, "train.init": str(init.resolve())} if init else {}
    return override(build("mst_small_head"), {**budget, **trained, **ARMS[arm]})


def train(folder: Path, config: Config) -> Path:
    """Train an arm with a seed, unless that is done, and return its checkpoint."""
    found = newest(UPath(folder))
    if not (found and found.is_finished):
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "settings.json"
        settings.write_text(config.model_dump_json())
        command = [sys.executable, "-m", "mst.training", str(settings), "--out", str(folder)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("a") as log:
            subprocess.run(command, env=one_thread, stdout=log, stderr=subprocess.STDOUT, check=True)
        found = newest(UPath(folder))
    assert found is not None
    print(f"{folder.name}: {found.path}", flush=True)
    return Path(str(found.path))


def clicked(checkpoint: Path, terms: Terms, actors: Actors) -> Sequence[ObjectRecord]:
    """What a checkpoint does on the objects."""
    (found,) = evaluate_on(checkpoint, terms, actors).values()
    return found.evaluation.records


def rows(records: Mapping[tuple[int, str], Sequence[ObjectRecord]], max_clicks: int) -> Iterator[Row]:
    """NoC@85 and @90 of each arm, its interval over images, and how it differs from the baseline."""
    images = [each.image_id for each in next(iter(records.values()))]
    for target in (85, 90):
        means: dict[str, NDArray[np.float64]] = {}
        for arm in dict.fromkeys(arm for _, arm in records):
            needed = np.array(
                [nocs(found, target / 100, max_clicks) for (_, each), found in records.items() if each == arm]
            )  # (seeds, objects)
            means[arm] = needed.mean(0)
            yield from _rows(
                f"{arm}_noc{target}", needed, images, None if arm == BASELINE else means[BASELINE]
            )


def _rows(
    name: str, needed: NDArray[np.float64], images: Sequence[str], baseline: NDArray[np.float64] | None
) -> Iterator[Row]:
    mean, interval = needed.mean(0), bootstrap_interval(needed.mean(0), images)
    yield row(name, float(mean.mean()), "clicks")
    yield row(f"{name}_low", interval.low, "clicks")
    yield row(f"{name}_high", interval.high, "clicks")
    yield row(f"{name}_deviation_of_seeds", float(needed.mean(1).std()), "clicks")
    if baseline is not None:
        found = paired_comparison(mean, baseline, images)
        yield from difference(f"{name}_less_{BASELINE}", found, "clicks")
        yield row(f"{name}_less_{BASELINE}_p", found.p, "")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument(
        "--samples", type=count, default=2400, help="samples that a run sees, a multiple of 24"
    )
    parser.add_argument("--objects", type=count, default=100, help="held out, evenly spread")
    parser.add_argument("--max-clicks", type=count, default=20, help="most clicks on an object")
    parser.add_argument("--runs", type=Path, default=PROJECT / "runs" / "ablation")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS)[1:], default=list(ARMS)[1:])
    parser.add_argument("--init", type=Path, help="folder of a trained checkpoint that the arms start from")
    arguments = parse(parser, None)
    arms = [BASELINE, *arguments.arms]
    print(json.dumps({arm: dict(ARMS[arm]) for arm in arms}))
    jobs = list(product(range(arguments.seeds), arms))

    def trained(job: tuple[int, str]) -> Path:
        seed, arm = job
        origin = f"from_{arguments.init.name}_" if arguments.init else ""
        config = experiment(seed, arm, arguments.samples, arguments.init)
        return train(arguments.runs / f"{origin}{arm}_{arguments.samples}_{seed}", config)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checkpoints = dict(zip(jobs, pool.map(trained, jobs), strict=True))
    cluster.connect()
    terms = Terms(
        data={"val": f"index:{PHOTOS / 'val'}?images={PHOTOS}"},
        max_clicks=arguments.max_clicks,
        max_objects=arguments.objects,
        keep=PROJECT / "out" / "evaluations",
    )
    with Actors(Resources(num_workers=os.cpu_count() or 1)) as actors:
        records = {job: clicked(checkpoint, terms, actors) for job, checkpoint in checkpoints.items()}
    report("ablation", rows(records, arguments.max_clicks))


if __name__ == "__main__":
    run(main)

"""What extra scales and the contrastive loss gain on photos, at equal budget: the paper's claim, tested.

    python -m benchmarks.studies.ablation --seeds 3
    python -m benchmarks.studies.ablation --init checkpoints/mst_small --max-clicks 10

With `--init` the arms go on from a model that has learnt, but for what makes the scales' tokens, which starts
anew: whether the scales help, rather than how soon an arm learns to segment at all.

Every arm starts from the same weights, sees the same samples with the same clicks to start from, as often as
there are seeds, and is then clicked on the same held-out objects (`benchmarks.shared.arms`).
"""

import argparse
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from benchmarks.shared.arms import HEAD_FIRST, SHORT, Job, add_options, click_all, rows, train_all
from benchmarks.shared.harness import report
from mst.command_line import parse, run
from mst.config import Config
from mst.overrides import override
from pipelines.recipes import build

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

BUDGET = {**SHORT, **HEAD_FIRST, "model.image_size": 224}

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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_options(parser, "ablation")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS)[1:], default=list(ARMS)[1:])
    parser.add_argument("--init", type=Path, help="folder of a trained checkpoint that the arms start from")
    arguments = parse(parser, None)
    arms = [BASELINE, *arguments.arms]
    print(json.dumps({arm: dict(ARMS[arm]) for arm in arms}))
    origin = f"from_{arguments.init.name}_" if arguments.init else ""
    jobs = {}
    for seed, arm in product(range(arguments.seeds), arms):
        folder = arguments.runs / f"{origin}{arm}_{arguments.samples}_{seed}"
        jobs[Job(arm, seed)] = folder, experiment(seed, arm, arguments.samples, arguments.init)
    records = click_all(train_all(jobs), arguments.objects, arguments.max_clicks)
    report("ablation", rows(records, arguments.max_clicks, BASELINE))


if __name__ == "__main__":
    run(main)

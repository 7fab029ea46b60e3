"""Whether a public SimpleClick checkpoint gives here the logits that its own code gives.

make bench-parity                                  # on ../shared/data/parity
.venv/bin/python -m benchmarks.parity --folder F   # NAME.safetensors and NAME_io.npz, as read below
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.shared.harness import Row, report, row
from mst.clicks import EMPTY_SLOT
from mst.config import SIZES, Dimensions, ModelConfig
from mst.model import MST
from mst.model.weights import load_pretrained

_CASE = "simpleclick_160x8_448"
_DIMENSIONS = Dimensions(160, 8, 4, (32, 64, 128, 256), 64)  # no size that anyone would train


def public_clicks(points: Tensor) -> Tensor:
    """SimpleClick's points (B, 2 n, 3), row, column and order, positive ones first, as our clicks."""
    labels = torch.ones(points.shape[:2])
    labels[:, points.shape[1] // 2 :] = 0
    labels[points[..., 2] < 0] = EMPTY_SLOT
    return torch.cat([points[..., :2], labels[..., None]], -1)


def parity(folder: Path) -> Iterator[Row]:
    """Largest difference of the logits, and how large they are."""
    SIZES["parity"] = _DIMENSIONS
    model = MST(ModelConfig(size="parity", patch_sizes=(), window=14, global_every=2, fusion_stages=1)).eval()
    found = load_pretrained(model, str(folder / f"{_CASE}.safetensors"))
    with np.load(folder / f"{_CASE}_io.npz") as case, torch.inference_mode():
        image, prev_mask, points, expected = (
            torch.from_numpy(case[name]) for name in ("image", "prev_mask", "points", "logits")
        )
        logits = model(image / 255, public_clicks(points), prev_mask.float()).logits
    yield row("missing_weights", len(found.missing), "tensors", at_most=0)
    yield row("largest_logit", float(expected.abs().max()), "")
    yield row("largest_difference", float((logits - expected).abs().max()), "", at_most=1e-4)


def main() -> None:
    """Run the check."""
    parser = argparse.ArgumentParser(description="Our baseline beside a public checkpoint.")
    parser.add_argument("--folder", type=Path, default=Path("../shared/data/parity"))
    folder = parser.parse_args().folder
    if not (folder / f"{_CASE}.safetensors").is_file():
        raise SystemExit(f"{folder} has no {_CASE}.safetensors; give its folder with --folder")
    report("parity", parity(folder))


if __name__ == "__main__":
    main()

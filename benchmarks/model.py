"""What MST costs, at 448: against its own baseline, against the public one, in bf16 and compiled.

    make bench-model                                       # all of it: about a quarter of an hour on 4 cores
    .venv/bin/python -m benchmarks.model --only headline   # the rows with a goal

Every ratio is of medians that were taken in turn, in one run.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shared.harness import Row, report, row, seconds_side_by_side
from benchmarks.shared.public_baseline import PublicBaseline
from mst.checkpoint import load_model
from mst.clicks import Click, click_tensor
from mst.config import SIZES, Config
from mst.data.scenes import shipped_photos
from mst.losses import total_loss
from mst.model import MST
from mst.model.flops import forward_flops
from mst.optim import build_optimizer
from mst.overrides import override
from mst.predictor import forward as predict
from mst.predictor import next_crop
from pipelines.recipes import build as recipe

Inputs = tuple[Tensor, Tensor, Tensor]
Call = Callable[[], object]

SIDE = 448
BASELINE, MULTI_SCALE = "", "8,28"  # the patch sizes of the extra scales
ROUNDS = 5
_WINDOW = 14  # of the public baseline, in tokens
SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints" / "scenes_tiny"


def build(patch_sizes: str, size: str = "base", window: int = 0) -> MST:
    """MST, or the baseline where there are no extra scales."""
    torch.manual_seed(0)
    settings = {"model.patch_sizes": patch_sizes, "model.size": size, "model.window": window}
    return MST(override(Config(), settings).model)


def inputs(batch: int) -> Inputs:
    """Image, clicks and previous mask of a batch."""
    clicks = [[Click(SIDE // 2, SIDE // 2, True), Click(10, 10, False)]] * batch
    return torch.rand(batch, 3, SIDE, SIDE), click_tensor(clicks, 4), torch.zeros(batch, 1, SIDE, SIDE)


def parameters(model: nn.Module) -> float:
    """Millions of parameters."""
    return sum(each.numel() for each in model.parameters()) / 1e6


def precision(name: str, device: str = "cpu") -> AbstractContextManager[object]:
    """Autocast for bf16, nothing for fp32."""
    return torch.autocast(device, torch.bfloat16) if name == "bf16" else nullcontext()


def inference(model: nn.Module, batch: Inputs, number: str = "fp32", mode: str = "eager") -> Call:
    """A forward, as a server does it."""
    model.eval()
    network: Callable[..., object] = torch.compile(model, fullgraph=True) if mode == "compiled" else model

    @torch.inference_mode()
    def run() -> object:
        with precision(number, batch[0].device.type):
            return network(*batch)

    return run


def train_step(model: MST, batch: Inputs, number: str = "fp32", mode: str = "eager") -> Call:
    """Forward, losses, backward and AdamW; compiled, forward and losses are one graph."""
    model.train()
    config = Config()
    optimizer = build_optimizer(model, config.optim)
    mask = torch.zeros_like(batch[2])
    mask[..., SIDE // 4 : SIDE // 2, SIDE // 4 : SIDE // 2] = 1

    def loss() -> Tensor:
        return total_loss(model(*batch), mask, config.loss).total

    compute = torch.compile(loss, fullgraph=True) if mode == "compiled" else loss

    def run() -> None:
        with precision(number, batch[0].device.type):
            total = compute()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return run


def train_step_peak(patch_sizes: str) -> float:
    """Most memory in MB of a process that trains, beyond what it holds before it has a model."""
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        return fresh.apply(_peak, (patch_sizes,))


def _peak(patch_sizes: str) -> float:
    before = _high_water_mark()
    step = train_step(build(patch_sizes), inputs(2))
    step()
    step()
    return _high_water_mark() - before


def _high_water_mark() -> float:
    # Not getrusage: its figure begins with that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def against_baseline() -> Iterator[Row]:
    """Size, work, time and memory beside the baseline, which has the same kernels and no extra scales."""
    baseline, mst, one = build(BASELINE), build(MULTI_SCALE), inputs(1)
    yield row("baseline_base_params", parameters(baseline), "M")
    yield row("mst_base_over_baseline_params", parameters(mst) / parameters(baseline), at_most=1.20)
    work, more_work = forward_flops(baseline), forward_flops(mst)
    yield row("baseline_base_gmac", work / 2e9, "GMAC")
    yield row("mst_base_over_baseline_gmac", more_work / work, at_most=1.30)
    yield from as_large_as_table_two()
    calls = {"baseline": inference(baseline, one), "mst": inference(mst, one)}
    seconds = seconds_side_by_side(calls, rounds=2 * ROUNDS)
    yield row("mst_base_forward", 1000 * seconds["mst"], "ms")
    yield row("mst_base_over_baseline_time", seconds["mst"] / seconds["baseline"], at_most=1.15)
    del baseline, mst, calls
    steps = {"baseline": train_step(build(BASELINE), one), "mst": train_step(build(MULTI_SCALE), one)}
    seconds = seconds_side_by_side(steps, rounds=ROUNDS)
    yield row("train_step_over_baseline_time", seconds["mst"] / seconds["baseline"], at_most=1.25)
    memory = {name: train_step_peak(name) for name in (BASELINE, MULTI_SCALE)}
    yield row("baseline_train_step_memory", memory[BASELINE], "MB")
    yield row("train_step_over_baseline_memory", memory[MULTI_SCALE] / memory[BASELINE], at_most=1.25)


def as_large_as_table_two() -> Iterator[Row]:
    """Size and work with MLPs in the fusion modules, beside the paper's 1.96 and 2.14."""
    with torch.device("meta"):
        mst, baseline = (
            MST(recipe(f"{name}_cocolvis").model) for name in ("mst_base_mlp", "simpleclick_base")
        )
    yield row("mst_base_mlp_over_simpleclick_params", parameters(mst) / parameters(baseline), at_least=1.86)
    gmac = forward_flops(mst) / forward_flops(baseline)
    yield row("mst_base_mlp_over_simpleclick_gmac", gmac, at_least=2.03)


def against_public_reference() -> Iterator[Row]:
    """Time beside the public baseline computed the plain way, on two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    public, one = PublicBaseline(SIZES["base"], SIDE, window=_WINDOW, global_every=6), inputs(1)
    calls = {
        "public": inference(public, one),
        "mst": inference(build(MULTI_SCALE), one),
        "in windows": inference(build(MULTI_SCALE, window=_WINDOW), one),
    }
    seconds = seconds_side_by_side(calls, rounds=2 * ROUNDS)
    torch.set_num_threads(threads)
    yield row("public_reference_forward", 1000 * seconds["public"], "ms")
    yield row("mst_base_over_public_reference_time", seconds["mst"] / seconds["public"], at_most=1.0)
    yield row("mst_base_in_windows_over_public_reference_time", seconds["in windows"] / seconds["public"])


def in_bf16_and_compiled() -> Iterator[Row]:
    """What bf16 and compilation gain, and whether bf16 draws the same masks on photos."""
    mst, one = build(MULTI_SCALE), inputs(1)
    calls = {
        "fp32 eager": inference(mst, one),
        "bf16 eager": inference(mst, one, "bf16"),
        "fp32 compiled": inference(mst, one, "fp32", "compiled"),
        "bf16 compiled": inference(mst, one, "bf16", "compiled"),
    }
    seconds = seconds_side_by_side(calls, rounds=ROUNDS)
    yield row("bf16_eager_speedup", seconds["fp32 eager"] / seconds["bf16 eager"])
    yield row("fp32_compiled_speedup", seconds["fp32 eager"] / seconds["fp32 compiled"])
    yield row("bf16_compiled_speedup", seconds["fp32 eager"] / seconds["bf16 compiled"], at_least=1.6)
    yield row("bf16_mask_iou", mask_agreement(), "IoU", at_least=0.99)


def mask_agreement() -> float:
    """Mean IoU of the masks of bf16 and fp32, of the shipped model on photos, after one click each."""
    model, config = load_model(SHIPPED)
    model.eval()
    crops = [
        next_crop(
            photo, [Click(photo.shape[0] * y // 8, photo.shape[1] * x // 8, True)], None, 112, config.eval
        )
        for photo in shipped_photos()
        for y, x in product(range(1, 8, 2), repeat=2)
    ]
    masks = {}
    for number in ("fp32", "bf16"):
        with precision(number):
            masks[number] = np.stack(predict(model, crops)) > config.eval.threshold
    both, either = masks["fp32"] & masks["bf16"], masks["fp32"] | masks["bf16"]
    return float(np.mean((both.sum((1, 2)) + 1) / (either.sum((1, 2)) + 1)))  # two empty masks agree


def everywhere() -> Iterator[Row]:
    """Time beside the baseline for both sizes, batches, precisions and modes."""
    for size, batch, number, mode in product(
        ("small", "base"), (1, 8), ("fp32", "bf16"), ("eager", "compiled")
    ):
        torch.compiler.reset()  # it recompiles a function for so many models only
        calls = {
            name: inference(build(patches, size), inputs(batch), number, mode)
            for name, patches in (("baseline", BASELINE), ("mst", MULTI_SCALE))
        }
        seconds = seconds_side_by_side(calls, rounds=ROUNDS if batch == 1 else 3)
        name = f"{size}_b{batch}_{number}_{mode}"
        yield row(f"mst_{name}_forward", 1000 * seconds["mst"] / batch, "ms/image")
        yield row(f"mst_{name}_over_baseline_time", seconds["mst"] / seconds["baseline"])


SUITES: dict[str, tuple[Callable[[], Iterator[Row]], ...]] = {
    "headline": (against_baseline, against_public_reference, in_bf16_and_compiled),
    "everywhere": (everywhere,),
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="What MST costs.")
    parser.add_argument("--only", choices=SUITES, help="one part of it")
    only = parser.parse_args().only
    suites = SUITES[only] if only else sum(SUITES.values(), ())
    report("model", (each for suite in suites for each in suite()))


if __name__ == "__main__":
    main()

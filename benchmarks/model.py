"""What MST's extra scales cost over the baseline, base size at 448, fp32: `make bench-model`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Row, report, row, seconds_side_by_side
from mst.clicks import Click, click_tensor
from mst.config import Config, override
from mst.losses import total_loss
from mst.model import MST
from mst.optim import build_optimizer

Inputs = tuple[Tensor, Tensor, Tensor]

SIDE = 448
BASELINE, MULTI_SCALE = "", "8,28"  # the patch sizes of the extra scales
ROUNDS = 5


def build(patch_sizes: str) -> MST:
    """MST-base, or the baseline where there are no extra scales."""
    torch.manual_seed(0)
    return MST(override(Config(), {"model.patch_sizes": patch_sizes}).model)


def inputs(batch: int, side: int) -> Inputs:
    """Image, clicks and previous mask of a batch."""
    clicks = [[Click(side // 2, side // 2, True), Click(10, 10, False)]] * batch
    return torch.rand(batch, 3, side, side), click_tensor(clicks, 4), torch.zeros(batch, 1, side, side)


def parameters(model: MST) -> float:
    """Millions of parameters."""
    return sum(each.numel() for each in model.parameters()) / 1e6


def gmac(model: MST, batch: Inputs) -> float:
    """Thousand million multiply-adds of a forward."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(*batch)
    return counter.get_total_flops() / 2e9


def forward(model: MST, batch: Inputs) -> Callable[[], object]:
    """A forward, as a server does it."""
    model.eval()

    @torch.inference_mode()
    def run() -> object:
        return model(*batch)

    return run


def train_step(model: MST, batch: Inputs) -> Callable[[], object]:
    """Forward, losses, backward and AdamW."""
    model.train()
    config = Config()
    optimizer = build_optimizer(model, config.optim)
    mask = torch.zeros_like(batch[2])
    mask[..., SIDE // 4 : SIDE // 2, SIDE // 4 : SIDE // 2] = 1

    def run() -> None:
        total_loss(model(*batch), mask, config.loss).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return run


def main() -> None:
    """Run the benchmark."""
    baseline, mst, one = build(BASELINE), build(MULTI_SCALE), inputs(1, SIDE)
    infer = seconds_side_by_side(
        {"baseline": forward(baseline, one), "mst": forward(mst, one)}, rounds=ROUNDS
    )
    train = seconds_side_by_side(
        {"baseline": train_step(baseline, one), "mst": train_step(mst, one)}, rounds=ROUNDS
    )
    rows: list[Row] = [
        row("baseline_base_params", parameters(baseline), "M"),
        row("mst_base_params", parameters(mst), "M"),
        row("mst_base_over_baseline_params", parameters(mst) / parameters(baseline), at_most=1.20),
        row("baseline_base_gmac", gmac(baseline, one), "GMAC"),
        row("mst_base_over_baseline_gmac", gmac(mst, one) / gmac(baseline, one), at_most=1.30),
        row("mst_base_forward_time", 1000 * infer["mst"], "ms"),
        row("mst_base_over_baseline_time", infer["mst"] / infer["baseline"], at_most=1.15),
        row("train_step_over_baseline_time", train["mst"] / train["baseline"], at_most=1.25),
    ]
    report("model", rows)


if __name__ == "__main__":
    main()

"""What a click costs where the image was encoded before it, beside the paper's network, on two threads.

    make bench-clicks                                    # MST-small at 448, batch 1
    .venv/bin/python -m benchmarks.clicks --rounds 20

In bf16 where the processor has instructions for it, else in fp32. Every ratio is of medians that were taken
in turn, in one run.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shared.harness import Row, report, row, seconds_side_by_side
from mst.clicks import Click, click_tensor
from mst.command_line import count, parse, run
from mst.config import Config
from mst.data.sampling.training_set import Batch
from mst.devices import has_bf16
from mst.encoders import OpenVINOEncoder, least_cosine
from mst.model import MST
from mst.model.flops import flops_of_parts
from mst.optim import freeze
from mst.overrides import override
from mst.training import new_state, train_step
from mst.training.features import FeatureStore
from pipelines.recipes import build

PAPER = build("mst_small")
LATE = {
    "model.click_entry": 12,
    "model.late_width": 192,
    "model.late_blocks": 2,
    "model.fusion_stages": 1,
    "model.features": [3, 6, 9],
}
"""Clicks after all blocks: a late part of half the ViT's width, that two blocks mix."""
ENTRIES: Mapping[str, Mapping[str, object]] = {
    "entry_6": {"model.click_entry": 6},
    "entry_10": {"model.click_entry": 10, "model.fusion_stages": 1},
    "entry_12": LATE,
}
THREADS, SIDE, TRAINING_SIDE, BATCH = 2, 448, 320, 8
HAS_BF16 = has_bf16(torch.device("cpu"))
PRECISION = "bf16" if HAS_BF16 else "fp32"
AT_320 = {
    "model.image_size": TRAINING_SIDE,
    "model.patch_sizes": [8, 32],  # 28 does not divide 320
    "eval.zoom_sides": [TRAINING_SIDE],
}


def model_of(settings: Mapping[str, object]) -> MST:
    """A network of random weights, as it is used."""
    torch.manual_seed(0)
    at_full_size = {
        "model.image_size": SIDE,
        "model.patch_sizes": [8, 28],
        "eval.zoom_sides": [SIDE],
        **settings,
    }
    return MST(override(PAPER, at_full_size).model).eval()


def calls_of(name: str, model: MST) -> dict[str, Callable[[], object]]:
    """Encoding an image, and a click on it, as a server does both."""
    image, prev_mask = torch.rand(1, 3, SIDE, SIDE), torch.rand(1, 1, SIDE, SIDE)
    clicks = click_tensor([[Click(SIDE // 2, SIDE // 2, True), Click(9, 9, False)]], 4)

    def as_used(call: Callable[[], object]) -> Callable[[], object]:
        @torch.inference_mode()
        def inside() -> object:
            with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BF16):
                return call()

        return inside

    model.settle([SIDE])
    encoded = as_used(lambda: model.encode(image))()
    return {
        f"{name}_encode": as_used(lambda: model.encode(image)),
        f"{name}_click": as_used(lambda: model(encoded, clicks, prev_mask, full_size=False)),
    }


def costs(rounds: int) -> Iterator[Row]:
    """Operations and time of encodings and clicks, over those of the paper's forward."""
    models = {name: model_of(settings) for name, settings in {"paper": {}, **ENTRIES}.items()}
    forward = flops_of_parts(models["paper"])[1]
    yield row("paper_forward", forward / 2e9, "GMAC")
    for name in ENTRIES:
        encode, click = flops_of_parts(models[name])
        yield row(f"{name}_encode_gmac_over_paper_forward", encode / forward)
        yield row(f"{name}_click_gmac_over_paper_forward", click / forward)
    calls = {key: call for name, model in models.items() for key, call in calls_of(name, model).items()}
    del calls["paper_encode"]  # there is nothing to encode
    encoder, image = OpenVINOEncoder(models["entry_12"], [SIDE], THREADS), torch.rand(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        yield row("openvino_cosine", least_cosine(encoder(image), models["entry_12"].encode(image)), "")
    calls["openvino_encode"] = lambda: encoder(image)
    seconds = seconds_side_by_side(calls, rounds=rounds)
    paper = seconds["paper_click"]
    yield row("paper_forward_time", 1000 * paper, "ms")
    for name in ENTRIES:
        yield row(f"{name}_encode_over_paper_forward", seconds[f"{name}_encode"] / paper)
        yield row(f"{name}_click_over_paper_forward", seconds[f"{name}_click"] / paper)
    yield row("click_over_paper_forward", seconds["entry_12_click"] / paper, at_most=0.12)
    yield row(f"openvino_{encoder.precision}_encode_over_paper_forward", seconds["openvino_encode"] / paper)
    best = min(seconds["entry_12_encode"], seconds["openvino_encode"])
    yield row("encode_over_paper_forward", best / paper, at_most=0.60)


def shares(rounds: int) -> Iterator[Row]:
    """Of the time of a click, what each part of the network takes."""
    model = model_of(LATE)
    click = calls_of("late", model)["late_click"]
    spent: dict[str, float] = defaultdict(float)

    def watch(name: str, owner: nn.Module, method: str = "forward") -> None:
        call = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            answer = call(*arguments, **named)
            spent[name] += time.perf_counter() - start
            return answer

        setattr(owner, method, timed)

    for name in ("click_context", "neck", "detail", "head"):
        watch(name, model.get_submodule(name))
    watch("maps", model.patch_embed, "maps")
    for block in model.late_blocks:
        watch("late_blocks", block)
    for stage in model.fusions.values():
        watch("fusions", stage, "guide")
    click()
    spent.clear()
    start = time.perf_counter()
    for _ in range(rounds):
        click()
    whole = time.perf_counter() - start
    spent["rest"] = whole - sum(spent.values())
    for name, seconds in sorted(spent.items(), key=itemgetter(1), reverse=True):
        yield row(f"click_share_{name}", seconds / whole, "")


def step_of(config: Config, *, frozen: bool, kept: Path | None = None) -> Callable[[], object]:
    """A training step, on one batch that is made up; maybe with features that are kept in a folder."""
    state, _ = new_state(config, torch.device("cpu"))
    freeze(state.model, ("encoder",) if frozen else ())
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    mask = torch.zeros(BATCH, 1, TRAINING_SIDE, TRAINING_SIDE)
    mask[..., 80:240, 80:240] = 1
    slots = 2 * config.clicks.max_clicks + config.clicks.max_iterations
    batch = Batch(
        image=(255 * drawn(BATCH, 3, TRAINING_SIDE, TRAINING_SIDE)).to(torch.uint8),
        mask=mask,
        clicks=click_tensor([[Click(160, 160, True)]] * BATCH, slots),
        draws=drawn(BATCH, config.clicks.max_iterations),
        skipped=torch.zeros(BATCH),
    )
    state.model.train()
    store = FeatureStore(kept, 10**9, state.model) if kept else None
    return lambda: train_step(state.model, state, {0: batch}, config, store)


def training(rounds: int) -> Iterator[Row]:
    """Samples a second with a frozen encoder, and with its features kept, over those where all learns."""
    common = {
        **AT_320,
        "train.precision": PRECISION,
        "train.init": None,
        "train.batch_size": BATCH,
    }
    full, late = override(PAPER, common), override(PAPER, {**common, **LATE})
    with TemporaryDirectory() as folder:
        calls = {
            "full": step_of(full, frozen=False),
            "frozen": step_of(late, frozen=True),
            "cached": step_of(late, frozen=True, kept=Path(folder)),
        }
        seconds = seconds_side_by_side(calls, rounds=rounds)
    yield row("full_samples", BATCH / seconds["full"], "samples/s")
    yield row("frozen_samples", BATCH / seconds["frozen"], "samples/s")
    yield row("cached_samples", BATCH / seconds["cached"], "samples/s")
    yield row("frozen_samples_over_full", seconds["full"] / seconds["frozen"], at_least=5)
    yield row("cached_samples_over_full", seconds["full"] / seconds["cached"], at_least=5)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clicks", description=__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=count, default=10, help="calls of each that count")
    rounds = parse(parser, None).rounds
    torch.set_num_threads(THREADS)
    print(f"torch in {PRECISION}")
    report("clicks", (each for part in (costs, shares, training) for each in part(rounds)))


if __name__ == "__main__":
    run(main)

"""What bf16 and int8 save on a forward, and cost in clicks on held-out objects.

    python -m benchmarks.studies.quantization --checkpoint checkpoints/mst_small

int8 is PyTorch's dynamic quantization of the linear layers of the ViT's MLPs, which hold most of the weights
and of the work. All times are of one forward of one image, by turns, in this process. The photos are made as
`pipelines.recipes.photos.mst_small_head` says.
"""

import argparse
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.shared.harness import Row, difference, report, row, seconds_side_by_side
from benchmarks.shared.photos import held_out
from benchmarks.studies.tokens import needed
from mst.checkpoint import load_model
from mst.clicks import Click
from mst.command_line import count, parse, run
from mst.config import EvalConfig
from mst.data.annotations import Sample
from mst.evaluation.statistics import paired_comparison
from mst.model import MST
from mst.predictor import forward, next_crop
from pipelines.storage import PROJECT

REFERENCE = "fp32"


class Variant(NamedTuple):
    """A model, and whether it runs in bf16."""

    model: MST
    is_bf16: bool = False


def with_int8(model: MST) -> MST:
    """A copy whose MLPs hold int8 weights, and round each input to int8 by its own range."""
    quantized = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its successor, torchao, was slower still
        for block in quantized.blocks:
            block.mlp = torch.ao.quantization.quantize_dynamic(block.mlp, {nn.Linear}, dtype=torch.qint8)
    return quantized


def one_forward(variant: Variant, image: NDArray[np.uint8]) -> None:
    """Answer a first click."""
    crop = next_crop(image, [Click(100, 100, True)], None, variant.model.config.image_size, EvalConfig())
    with torch.autocast("cpu", torch.bfloat16, enabled=variant.is_bf16):
        forward(variant.model, [crop])


def rows(
    model: MST, config: EvalConfig, samples: Sequence[Sample], most: int, *, rounds: int = 15
) -> Iterator[Row]:
    """Measure."""
    variants = {REFERENCE: Variant(model), "bf16": Variant(model, True), "int8": Variant(with_int8(model))}
    calls: dict[str, Callable[[], object]] = {
        name: partial(one_forward, each, samples[0].image) for name, each in variants.items()
    }
    seconds = seconds_side_by_side(calls, rounds=rounds)
    for name, each in seconds.items():
        yield row(f"{name}_forward_ms", 1000 * each, "ms")
    for name in list(variants)[1:]:
        yield row(f"{name}_over_{REFERENCE}", seconds[name] / seconds[REFERENCE])
    reference = needed(variants.pop(REFERENCE).model, config, samples, most, is_bf16=False)
    yield row(f"{REFERENCE}_noc90", float(reference.mean()), "clicks")
    for name, variant in variants.items():
        clicks = needed(variant.model, config, samples, most, is_bf16=variant.is_bf16)
        found = paired_comparison(clicks, reference, [each.image_id for each in samples])
        yield from difference(f"{name}_noc90_less_{REFERENCE}", found, "clicks")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, default=PROJECT / "checkpoints" / "mst_small")
    parser.add_argument("--objects", type=count, default=60, help="held out, evenly spread")
    parser.add_argument("--max-clicks", type=count, default=10, help="most clicks on an object")
    parser.add_argument("--threads", type=count, default=os.cpu_count())
    arguments = parse(parser, None)
    torch.set_num_threads(arguments.threads)
    model, config = load_model(arguments.checkpoint)
    samples = held_out(arguments.objects)
    report("quantization", rows(model.eval(), config.eval, samples, arguments.max_clicks))


if __name__ == "__main__":
    run(main)

"""What another runtime for the encoder changes in masks and in clicks, on held-out photos.

    python -m benchmarks.studies.runtimes --checkpoint runs/late/step_…

The reference is torch in fp32. Each runtime gets the same three clicks, those of the protocol with the
reference, and then clicks of its own. The photos are made as `pipelines.recipes.photos.mst_small_head` says.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.shared.harness import Row, difference, report, row
from benchmarks.shared.photos import held_out
from mst.checkpoint import load_model
from mst.command_line import count, parse, run
from mst.config import EvalConfig
from mst.data.annotations import Sample
from mst.devices import has_bf16
from mst.encoders import OpenVINOEncoder
from mst.encodings import Encodings
from mst.evaluation import ObjectRecord, evaluate
from mst.evaluation.metrics import iou
from mst.evaluation.statistics import paired_comparison
from mst.model import MST
from mst.predictor import Predictor

REFERENCE = "torch_fp32"
TARGET = 0.9
MASKS = 3
"""Clicks after which masks are compared."""


class Runtime(NamedTuple):
    """What answers clicks, and whether torch computes in bf16 meanwhile."""

    predictor: Predictor
    is_bf16: bool = False

    def precision(self) -> torch.autocast:
        """Return the context of its calls."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16)


def runtimes(model: MST, config: EvalConfig, threads: int) -> dict[str, Runtime]:
    """The reference, OpenVINO, and torch in bf16 where the processor has it."""
    sides = sorted({model.config.image_size, *config.zoom_sides})
    encoder = OpenVINOEncoder(model, sides, threads)
    by_openvino = Predictor(model, config)
    by_openvino.encodings = Encodings(model, encode=encoder)
    found = {
        REFERENCE: Runtime(Predictor(model, config)),
        f"openvino_{encoder.precision}": Runtime(by_openvino),
    }
    if has_bf16(torch.device("cpu")):
        found["torch_bf16"] = Runtime(Predictor(model, config), is_bf16=True)
    return found


def clicked(runtime: Runtime, samples: Sequence[Sample], most: int, target: float) -> list[ObjectRecord]:
    """The protocol on every object."""
    with runtime.precision():
        return evaluate(runtime.predictor.open, samples, most, [target])


def mask_ious(
    one: Runtime, other: Runtime, samples: Sequence[Sample], records: Sequence[ObjectRecord]
) -> list[float]:
    """How alike both runtimes' masks are after the clicks of records."""
    found = []
    for sample, record in zip(samples, records, strict=True):
        masks = []
        for each in (one, other):
            with each.precision():
                masks.append(each.predictor.open(sample.image)(record.clicks))
        found.append(iou(*masks))
    return found


def rows(found: Mapping[str, Runtime], samples: Sequence[Sample], most: int) -> Iterator[Row]:
    """Measure."""
    reference = found[REFERENCE]
    same_clicks = clicked(reference, samples, MASKS, target=1)
    images = [each.image_id for each in samples]
    needed = {}
    for name, runtime in found.items():
        records = clicked(runtime, samples, most, TARGET)
        needed[name] = np.array([len(each.clicks) for each in records], float)
        seconds = sum(sum(each.seconds_model) for each in records) / needed[name].sum()
        yield row(f"{name}_noc90", float(needed[name].mean()), "clicks")
        yield row(f"{name}_spc", 1000 * seconds, "ms")
        if name != REFERENCE:
            alike = mask_ious(reference, runtime, samples, same_clicks)
            yield row(f"{name}_mask_iou", float(np.mean(alike)), "", at_least=0.99)
            yield row(f"{name}_mask_iou_least", min(alike), "")
            compared = paired_comparison(needed[name], needed[REFERENCE], images)
            yield from difference(f"{name}_noc90_less_{REFERENCE}", compared, "clicks")
            change = abs(compared.mean_difference)
            yield row(f"{name}_noc90_change", change, "clicks", at_most=0.05)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a model whose clicks enter late")
    parser.add_argument("--objects", type=count, default=50, help="held out, evenly spread")
    parser.add_argument("--max-clicks", type=count, default=10, help="most clicks on an object")
    parser.add_argument("--threads", type=count, default=os.cpu_count())
    arguments = parse(parser, None)
    torch.set_num_threads(arguments.threads)
    model, config = load_model(arguments.checkpoint)
    samples = held_out(arguments.objects)
    found = runtimes(model.eval(), config.eval, arguments.threads)
    report("runtimes", rows(found, samples, arguments.max_clicks))


if __name__ == "__main__":
    run(main)

"""What the extra scales do in a trained model: what they select, how far they move, and what it does without.

    python -m benchmarks.studies.tokens --checkpoint checkpoints/mst_small

On held-out objects, in groups by their share of the image. `lift` is how much likelier a token that the last
fusion module selects after the first click lies on the object than one drawn at random; `guides` is how often
a scale is the one that the base tokens attend to; `moves` is the length of what the module adds to the base
tokens, as a share of theirs. `noc90_alone` is of the same weights with nothing added: they were trained with
it, so the difference tells whether the model relies on its scales, not whether it would have become as good
without. The photos are made as `pipelines.recipes.photos.mst_small_head` says.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.shared.harness import Row, difference, report, row
from benchmarks.shared.photos import held_out
from mst.checkpoint import load_model
from mst.command_line import count, parse, run
from mst.config import EvalConfig
from mst.data.annotations import Sample
from mst.data.pixels.images import resize
from mst.errors import ConfigError
from mst.evaluation import evaluate
from mst.evaluation.report.gallery import share_on_object
from mst.evaluation.statistics import paired_comparison
from mst.model import MST
from mst.model.fusion import FusionStage
from mst.predictor import Predictor, next_crop, outputs
from mst.robot import next_click
from pipelines.promotion.rules import nocs
from pipelines.storage import PROJECT

EDGES = (0.0, 0.01, 0.1, 1.0)
"""Of the groups: shares of the image that an object covers."""


class Seen(NamedTuple):
    """What the last fusion module did after an object's first click."""

    lifts: Mapping[int, float]
    """By patch size: the selected tokens' share on the object over the object's share of the image."""
    guide: int
    """Patch size of the scale that guided the base tokens."""
    moves: float
    """Length of what was added to the base tokens over theirs, mean over tokens."""


class _Silent(nn.Module):
    """Stands in for the attention that guides the base tokens, and adds nothing."""

    def forward(self, tokens: Tensor, *_: Tensor) -> Tensor:
        return torch.zeros_like(tokens)


@torch.inference_mode()
def look(model: MST, sample: Sample) -> Seen:
    """Click once on an object and see what the last fusion module does."""
    size = model.config.image_size
    lengths: list[float] = []

    def measure(_: nn.Module, arguments: tuple[Tensor, ...], added: Tensor) -> None:
        lengths.append(float((added.norm(dim=-1) / arguments[0].norm(dim=-1)).mean()))

    last = list(model.fusions.values())[-1]
    assert isinstance(last, FusionStage)
    handle = last.guide_base.register_forward_hook(measure)
    click = next_click(np.zeros_like(sample.mask), sample.mask, sample.void)
    assert click is not None  # there is no sample without something to click on
    crop = next_crop(sample.image, [click], None, size, EvalConfig())
    stage = outputs(model, [crop]).stages[-1]
    handle.remove()
    truth = resize(sample.mask.astype(np.float32), size, size) > 0.5
    chance = sample.mask.mean()
    lifts = {each.patch_size: share_on_object(each, truth) / chance for each in stage.selections}
    return Seen(lifts, stage.selections[int(stage.chosen[0])].patch_size, lengths[-1])


def needed(
    model: MST, config: EvalConfig, samples: Sequence[Sample], max_clicks: int, *, is_bf16: bool = True
) -> NDArray[np.float64]:
    """NoC@90 of each object, (N,)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        records = evaluate(Predictor(model, config).open, samples, max_clicks)
    return np.array(nocs(records, 0.9, max_clicks), np.float64)


def rows(model: MST, config: EvalConfig, samples: Sequence[Sample], max_clicks: int) -> Iterator[Row]:
    """Measure, group by group."""
    seen = [look(model, sample) for sample in samples]
    together = needed(model, config, samples, max_clicks)
    for stage in model.fusions.values():
        stage.guide_base = _Silent()
    alone = needed(model, config, samples, max_clicks)
    images = [each.image_id for each in samples]
    shares = np.array([sample.mask.mean() for sample in samples])
    for low, high in pairwise(EDGES):
        inside = np.flatnonzero((shares > low) & (shares <= high))
        if len(inside):
            group = f"{low:.0%}_to_{high:.0%}"
            yield row(f"{group}_objects", len(inside), "")
            yield from _of_tokens(group, [seen[index] for index in inside])
            owners = [images[index] for index in inside]
            yield from _of_clicks(group, alone[inside], together[inside], owners)
    yield from _of_clicks("all", alone, together, images)


def _of_tokens(group: str, seen: Sequence[Seen]) -> Iterator[Row]:
    for size in seen[0].lifts:
        yield row(f"{group}_patch_{size}_lift", float(np.mean([each.lifts[size] for each in seen])))
        yield row(f"{group}_patch_{size}_guides", float(np.mean([each.guide == size for each in seen])), "")
    yield row(f"{group}_moves", float(np.mean([each.moves for each in seen])), "")


def _of_clicks(
    group: str, alone: NDArray[np.float64], together: NDArray[np.float64], images: Sequence[str]
) -> Iterator[Row]:
    found = paired_comparison(alone, together, images)
    yield row(f"{group}_noc90", float(together.mean()), "clicks")
    yield row(f"{group}_noc90_alone", float(alone.mean()), "clicks")
    yield from difference(f"{group}_noc90_alone_more", found, "clicks")
    yield row(f"{group}_noc90_alone_more_p", found.p, "")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, default=PROJECT / "checkpoints" / "mst_small")
    parser.add_argument("--objects", type=count, default=100, help="held out, evenly spread")
    parser.add_argument("--max-clicks", type=count, default=20, help="most clicks on an object")
    arguments = parse(parser, None)
    model, config = load_model(arguments.checkpoint)
    if not model.fusions:
        raise ConfigError(f"{arguments.checkpoint} has no extra scales: model.patch_sizes is empty")
    samples = held_out(arguments.objects)
    report("tokens", rows(model.eval(), config.eval, samples, arguments.max_clicks))


if __name__ == "__main__":
    run(main)

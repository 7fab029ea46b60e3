"""Put a trained checkpoint into the project, as the model that ships, if it is better than the one there.

    python pipelines/ship.py --checkpoint runs/mst_small_320/step_00000100 \\
        --data 'index:data/real/val?images=data/real' --max-objects 100 --max-clicks 10

Options like `--eval.zoom_sides 224,320` say how it is clicked on. Weights are stored as fp16, which is what
is measured; the training's state stays behind. Both models click on the same objects, and the new one must
need fewer clicks to an IoU of 90 % by more than chance explains (the bootstrap interval of the paired
difference). Exit status 3: it does not, and nothing was changed.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

from upath import UPath

from mst.checkpoint import copy_for_use, load_model, save_checkpoint
from mst.command_line import add_options, count, given, parse, run
from mst.evaluation.statistics import Comparison
from mst.overrides import override
from pipelines import cluster
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Precision
from pipelines.evaluation.tables import show_evaluations
from pipelines.promotion.comparison import Evaluated, Terms, evaluate_on, named, records_of
from pipelines.promotion.rules import compare
from pipelines.storage import PROJECT

SHIPPED = PROJECT / "checkpoints" / "mst_small"
NOT_BETTER = 3
"""Exit status."""


class Outcome(NamedTuple):
    """What a comparison said."""

    new: dict[str, Evaluated]
    """What the new model did on each data set."""
    old: dict[str, Evaluated]
    """What the old one did; empty where there was none."""
    difference: Comparison | None
    """The new one's NoC@90 less that of the old one, over all objects."""

    @property
    def is_shipped(self) -> bool:
        """Whether the new one is better, or the first."""
        return self.difference is None or self.difference.high < 0


def ship(checkpoint: Path, out: Path, terms: Terms, changes: Mapping[str, str] | None = None) -> Outcome:
    """Put a checkpoint where the one that ships is, if it is better; Ray must be connected.

    Args:
        checkpoint: whole, with or without its training's state.
        out: the one that ships now; where there is none, any checkpoint is better.
        terms: what both are compared on.
        changes: of its settings of clicks, `eval.*`, by name.

    Raises:
        CheckpointError: either is damaged.
        MSTError: the data cannot be used, or a change is none that can be made.
    """
    with tempfile.TemporaryDirectory() as scratch:
        offered = Path(scratch) / checkpoint.name
        in_half(checkpoint, offered, changes)
        new = evaluate_on(offered, terms)
        old = evaluate_on(out, terms) if out.exists() else {}
        difference = compare(records_of(new), records_of(old), terms.max_clicks) if old else None
        outcome = Outcome(new, old, difference)
        if outcome.is_shipped:
            copy_for_use(offered, out)
    return outcome


def in_half(checkpoint: Path, out: Path, changes: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint for use with weights of fp16, which tells nothing of the folders of this machine."""
    model, config = load_model(checkpoint)
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    root = Path(config.data.root).name
    init = config.train.init and Path(config.train.init).name
    merged = {"data.root": f"data/{root}", "train.init": init, **(changes or {})}
    save_checkpoint(out, weights, override(config, merged))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Make a checkpoint the model that ships, if it is better.", allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the model that ships")
    parser.add_argument("--data", nargs="+", required=True, metavar="SOURCE", help="to compare on")
    parser.add_argument("--max-objects", type=count, help="most objects of each data set, evenly spread")
    parser.add_argument("--max-clicks", type=count, default=20, help="most clicks on an object")
    parser.add_argument("--num-workers", type=count, default=1, help="Ray actors that share the objects")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="precision of the forward pass of both",
    )
    add_options(parser, "eval.")
    arguments = parse(parser, None)
    terms = Terms(
        data=named(arguments.data, UPath(Path.cwd())),
        max_clicks=arguments.max_clicks,
        max_objects=arguments.max_objects,
        resources=Resources(num_workers=arguments.num_workers),
        keep=PROJECT / "out" / "evaluations",
        precision=arguments.precision,
    )
    cluster.connect()
    outcome = ship(arguments.checkpoint, arguments.out, terms, given(arguments))
    for name in outcome.new:
        models = [(str(arguments.checkpoint), outcome.new), (str(arguments.out), outcome.old)]
        show_evaluations([replace(did[name].evaluation, subject=model) for model, did in models if did])
    found = outcome.difference
    if found is None:
        print(f"{arguments.out}: the first one")
        return
    print("NoC@90", *found.told(2), f"against {arguments.out}")
    if not outcome.is_shipped:
        print("not better by more than chance explains: nothing was changed")
        sys.exit(NOT_BETTER)


if __name__ == "__main__":
    run(main)

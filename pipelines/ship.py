"""Put a trained checkpoint into the project, as the model that ships, if it is better than the one there.

    python pipelines/ship.py --checkpoint runs/mst_small_320/step_00000100 \\
        --data 'index:data/real/val?images=data/real' --max-objects 100 --max-clicks 10

Options like `--eval.zoom_sides 224,320` say how it is clicked on. Weights are stored as fp16, which is what
is measured; the training's state stays behind. Both models click on the same objects, and the rules of
`pipelines/promote.py` decide (`pipelines/promotion/rules.py`). Exit status 3: it is not better, and nothing
was changed.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

from rich.console import Console
from upath import UPath

from mst.checkpoint import copy_for_use, load_model, save_checkpoint
from mst.command_line import add_options, count, given, parse, run
from mst.overrides import override
from pipelines import cluster
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Actors, Precision
from pipelines.evaluation.evaluate import actor_resources, add_actors
from pipelines.evaluation.tables import show_evaluations
from pipelines.promotion.comparison import Evaluated, Terms, evaluate_on, named
from pipelines.promotion.looks import folder_look, judge, judge_first, look_of
from pipelines.promotion.promote import show_reasons
from pipelines.promotion.rules import Decision, Rules, add_rules, rules_of
from pipelines.storage import PROJECT

SHIPPED = PROJECT / "checkpoints" / "mst_small"
NOT_BETTER = 3
"""Exit status."""


class Verdict(NamedTuple):
    """What a comparison said."""

    new: dict[str, Evaluated]
    """What the new model did on each data set."""
    old: dict[str, Evaluated]
    """What the old one did; empty where there was none."""
    decision: Decision
    """The new one is shipped where it is promoted."""


def ship(
    checkpoint: Path,
    out: Path,
    terms: Terms,
    rules: Rules,
    resources: Resources,
    changes: Mapping[str, str] | None = None,
) -> Verdict:
    """Put a checkpoint where the one that ships is, if it is better; Ray must be connected.

    Args:
        checkpoint: whole, with or without its training's state.
        out: the one that ships now; where there is none, the new one has to be better than itself untrained
            and than the best classical peer.
        terms: what both are compared on.
        rules: when the new one is better.
        resources: of the actors that evaluate both.
        changes: of its settings of clicks, `eval.*`, by name.

    Raises:
        CheckpointError: either is damaged.
        MSTError: the data cannot be used, or a change is none that can be made.
    """
    with tempfile.TemporaryDirectory() as scratch:
        offered = Path(scratch) / checkpoint.name
        in_half(checkpoint, offered, changes)
        with Actors(resources) as actors:
            new = evaluate_on(offered, terms, actors)
            old = evaluate_on(out, terms, actors) if out.exists() else {}
            if old:
                kept = folder_look(out, look_of((str(checkpoint), str(out)), new, old))
                decision = judge(kept, (offered, new), (out, old), terms, rules, actors)
            else:
                decision = judge_first(offered, new, terms, rules, actors)
        if decision.is_promoted:
            copy_for_use(offered, out)
    return Verdict(new, old, decision)


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
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="precision of the forward pass of both",
    )
    add_actors(parser)
    add_rules(parser)
    add_options(parser, "eval.")
    arguments = parse(parser, None)
    rules = rules_of(arguments)
    cluster.connect()
    terms = Terms(
        data=named(arguments.data, UPath(Path.cwd())),
        max_clicks=arguments.max_clicks,
        max_objects=arguments.max_objects,
        keep=PROJECT / "out" / "evaluations",
        precision=arguments.precision,
    )
    verdict = ship(
        arguments.checkpoint, arguments.out, terms, rules, actor_resources(arguments), given(arguments)
    )
    for name in verdict.new:
        models = [(str(arguments.checkpoint), verdict.new), (str(arguments.out), verdict.old)]
        show_evaluations([replace(did[name].evaluation, subject=model) for model, did in models if did])
    show_reasons(verdict.decision, Console(highlight=False, soft_wrap=True))
    if not verdict.decision.is_promoted:
        print(f"{arguments.out} was not changed: {verdict.decision.why()}")
        sys.exit(NOT_BETTER)
    print(f"{arguments.out} is now {arguments.checkpoint}")


if __name__ == "__main__":
    run(main)

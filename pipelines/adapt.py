"""Make the champion better at your own photos, if it becomes better: minutes on two cores for few photos.

    python pipelines/adapt.py --data 'coco:leaves.json?images=photos'
    python pipelines/adapt.py --data labels:masks?images=photos --dry-run      # what it would use
    python pipelines/adapt.py --data ... --from checkpoints/mst_small --reference grabcut:/data/GrabCut

Every third photo is held out and judges. The figures are those of `pipelines/evaluate.py`, with intervals
over photos. The registry's champion is replaced by the rules of `pipelines/promote.py` alone, on your
held-out photos and on what it was judged by before; running servers follow. A run of the same name goes on
where it was. Exit status 3: nothing was promoted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from upath import UPath

from mst.command_line import count, parse, run
from mst.errors import ConfigError
from mst.evaluation.statistics import Comparison
from pipelines import cluster
from pipelines.adaptation.adapt import (
    CHAMPION_ADDRESS,
    YOURS,
    Finding,
    Plan,
    adapt,
    reference_of,
    terms_of,
)
from pipelines.adaptation.photos import LEAST_TO_JUDGE, read_photos
from pipelines.evaluation.evaluate import actor_resources, add_actors
from pipelines.promote import NOT_PROMOTED, tell
from pipelines.promotion.promote import Request, promote
from pipelines.promotion.rules import Rules, add_rules, rules_of
from pipelines.storage import run_folder
from pipelines.training.progress import shown
from pipelines.training.tracking import tracking_uri


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Adapt the champion to your annotated photos.", allow_abbrev=False
    )
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="SOURCE", help="your photos and masks, as in docs/data.md"
    )
    parser.add_argument(
        "--hold-out", nargs="+", default=(), metavar="SOURCE", help="judge by these, not by a part of --data"
    )
    parser.add_argument(
        "--from",
        dest="base",
        default=CHAMPION_ADDRESS,
        metavar="MODEL",
        help="adapt this one: a checkpoint folder or models:/NAME@ALIAS (default: the champion)",
    )
    parser.add_argument(
        "--reference",
        nargs="+",
        default=(),
        metavar="SOURCE",
        help="what it must not forget (default: what the champion was judged by)",
    )
    parser.add_argument("--name", default="adapted", help="name of the run; the same name goes on with it")
    parser.add_argument("--storage", default="runs", help="folder of all runs, on this machine")
    parser.add_argument("--max-objects", type=count, default=120, help="most objects of each data set")
    parser.add_argument("--max-clicks", type=count, default=20, help="most clicks on an object")
    parser.add_argument("--dry-run", action="store_true", help="say what would be used, and change nothing")
    add_actors(parser)
    add_rules(parser)
    return parser


def main() -> None:
    """Run the command line."""
    arguments = parse(_parser(), None)
    if "://" in arguments.storage:
        raise ConfigError(f"--storage {arguments.storage}: adapting needs a folder of this machine")
    rules = rules_of(arguments)
    photos = read_photos(arguments.data, arguments.hold_out, UPath(Path.cwd()))
    print("\n".join(photos.lines()))
    if not photos.held_out:
        print(f"{2 * LEAST_TO_JUDGE} photos are needed to hold some out: nothing can be judged or promoted")
    if arguments.dry_run:
        return
    uri, folder = tracking_uri(), run_folder(arguments.storage, arguments.name)
    cluster.connect()
    plan = Plan(
        base=arguments.base,
        reference=reference_of(uri, arguments.reference, arguments.base),
        max_objects=arguments.max_objects,
        max_clicks=arguments.max_clicks,
        resources=actor_resources(arguments),
    )
    with shown(folder.name) as board:
        found = adapt(uri, folder, photos, plan, board)
    print("\n".join(_told(found, rules)))
    if not photos.held_out:
        print(f"not judged, and not promoted: {folder}")
        sys.exit(NOT_PROMOTED)
    if arguments.base == CHAMPION_ADDRESS:
        _offer(uri, folder, plan, rules)


def _told(found: Sequence[Finding], rules: Rules) -> list[str]:
    lines = [
        f"{each}" if each.data == YOURS else f"elsewhere, {each}: {_elsewhere(each.change, rules)}"
        for each in found
    ]
    if all(each.data == YOURS for each in found):
        lines.append("elsewhere: not measured; --reference SOURCE names what it must not forget")
    return lines


def _elsewhere(change: Comparison, rules: Rules) -> str:
    return "no worse" if change.high <= rules.no_worse_by else "perhaps worse"


def _offer(uri: str, folder: UPath, plan: Plan, rules: Rules) -> None:
    """Let the registry's gate decide."""
    terms = terms_of(Path(f"{folder}.data"), plan)
    request = Request(
        resources=plan.resources,
        data=list(terms.data.values()),
        max_objects=plan.max_objects,
        max_clicks=plan.max_clicks,
        rules=rules,
        keep=plan.keep,
    )
    tell(*promote(uri, folder, request))


if __name__ == "__main__":
    run(main)

"""Offer a run's best checkpoint to the registry, which takes it only if it is better than the champion.

    python pipelines/promote.py --run runs/my_run --data grabcut:/data/GrabCut berkeley:/data/Berkeley
    python pipelines/promote.py --run runs/my_run      # on the data that the champion was judged by
    python pipelines/promote.py --rollback "masks of glass became worse"
    python pipelines/promote.py --log

Champion and challenger click on the same objects, and `pipelines/promotion/rules.py` has the rules. Exit
status 3: the challenger was not promoted. Where there is no champion yet, the first one has to be better than
itself untrained and than the best classical peer.
"""

import argparse
import sys

from mlflow import MlflowClient

from mst.command_line import count, parse, run
from mst.errors import ConfigError
from pipelines import cluster
from pipelines.evaluation.evaluate import actor_resources, add_actors
from pipelines.promotion.looks import registry_looks
from pipelines.promotion.promote import Request, promote
from pipelines.promotion.rules import Decision, add_rules, rules_of
from pipelines.registry.versions import (
    AT,
    BY,
    CHAMPION,
    KIND,
    REGISTERED_MODEL,
    STATE,
    WHY,
    Outcome,
    registry_client,
    roll_back,
    versions,
)
from pipelines.storage import run_folder
from pipelines.training.tracking import plainly, tracking_uri

NOT_PROMOTED = 3
"""Exit status."""


def show_log(client: MlflowClient) -> None:
    """Print who promoted what, when and why, and all comparisons that there were."""
    aliases: dict[str, str] = {}
    for model in client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        for alias, number in model.aliases.items():
            same = aliases.get(str(number))
            aliases[str(number)] = f"{same}, {alias}" if same else alias
    for each in versions(client):
        number, tags = str(each.version), each.tags
        kind = ", ".join(filter(None, (tags.get(KIND), tags.get(STATE), aliases.get(number))))
        who = "  ".join(tags.get(name, "unknown") for name in (AT, BY))
        print(f"version {number:4} {kind:32} {who}  run {tags.get('run', 'unknown')}")
        print(f"             {tags.get(WHY, 'not promoted by pipelines/promote.py')}")
    for look in registry_looks(client):
        compared = f"{look.challenger} with {look.champion} on {', '.join(look.data)}"
        print(f"comparison   {compared}  {look.at}  {look.by}")
        print(f"             {look.outcome}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Offer a run's best checkpoint to the registry.", allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="folder of the run, as in runs/NAME")
    what.add_argument("--rollback", metavar="REASON", help="make the previous champion champion again")
    what.add_argument("--log", action="store_true", help="show who promoted what, when and why")
    parser.add_argument("--version", metavar="N", help="with --rollback: the version to go back to")
    parser.add_argument(
        "--data",
        nargs="+",
        default=(),
        metavar="SOURCE",
        help="compare on these data sets, best ones that neither was chosen on (default: the champion's)",
    )
    parser.add_argument(
        "--seen-data",
        action="store_true",
        help="judge also by data that either was trained on, or chosen by its validation",
    )
    parser.add_argument("--max-objects", type=count, help="most objects of each data set, evenly spread")
    parser.add_argument("--max-clicks", type=count, help="most clicks on an object (default: the model's)")
    parser.add_argument("--dry-run", action="store_true", help="compare, and change nothing")
    parser.add_argument(
        "--force", metavar="REASON", help="promote whatever the rules say; the reason is kept"
    )
    add_rules(parser)
    add_actors(parser)
    return parser


def main() -> None:
    """Run the command line."""
    arguments = parse(_parser(), None)
    uri = tracking_uri()
    if arguments.run is None:
        with plainly(uri):
            _without_a_run(registry_client(uri), arguments)
        return
    if arguments.force is not None and not arguments.force.strip():
        raise ConfigError("--force needs a reason, which is kept with the version")
    rules = rules_of(arguments)
    cluster.connect()
    request = Request(
        resources=actor_resources(arguments),
        data=arguments.data,
        max_objects=arguments.max_objects,
        max_clicks=arguments.max_clicks,
        rules=rules,
        force=arguments.force,
        dry_run=arguments.dry_run,
        seen_data=arguments.seen_data,
    )
    storage, slash, name = arguments.run.rstrip("/").rpartition("/")
    decision, outcome = promote(uri, run_folder(storage or slash or ".", name), request)
    tell(decision, outcome)


def _without_a_run(client: MlflowClient, arguments: argparse.Namespace) -> None:
    if arguments.log:
        show_log(client)
    else:
        _announce(roll_back(client, arguments.rollback, arguments.version))


def tell(decision: Decision, outcome: Outcome | None) -> None:
    """Print what became of an offer; end the command where it was not promoted."""
    if outcome:
        _announce(outcome)
    elif decision.is_promoted:
        print("would be promoted (dry run)")
    else:
        print(f"not promoted: {decision.why()}")
        sys.exit(NOT_PROMOTED)


def _announce(outcome: Outcome) -> None:
    if not outcome.is_champion:
        print(
            f"not promoted: another promotion came before version {outcome.version}; give the command again"
        )
        sys.exit(NOT_PROMOTED)
    print(f"models:/{REGISTERED_MODEL}@{CHAMPION} is now version {outcome.version}")


if __name__ == "__main__":
    run(main)

"""Offer a run's best checkpoint to the registry, which takes it only if it is better than the champion.

    python pipelines/promote.py --run runs/my_run --data grabcut:/data/GrabCut berkeley:/data/Berkeley
    python pipelines/promote.py --run runs/my_run      # on the data that the champion was judged by
    python pipelines/promote.py --rollback "masks of glass became worse"
    python pipelines/promote.py --log

Champion and challenger click on the same objects, and `pipelines/decision.py` has the rules. Exit status 3:
the challenger was not promoted. Where there is no champion yet, the first one is evaluated on the validation
data of its training unless other data are given.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from upath import UPath

from mst.command_line import count, parse, run
from mst.config import Config
from mst.data.files import as_path
from mst.errors import ConfigError, MSTError
from pipelines import cluster
from pipelines.candidate import DATA, MAX_CLICKS, MAX_OBJECTS, Candidate, candidate, publish
from pipelines.cluster import Resources
from pipelines.comparison import Terms, evaluate_on, named, records_of
from pipelines.decision import Decision, Records, Rules, decide
from pipelines.evaluate import resources_of
from pipelines.registry import (
    AT,
    BY,
    CHAMPION,
    KIND,
    REGISTERED_MODEL,
    STATE,
    WHY,
    Outcome,
    Promotion,
    connect,
    fetch_checkpoint,
    roll_back,
    standing,
    versions,
)
from pipelines.storage import PROJECT, run_folder
from pipelines.tracking import plainly, tracking_uri

NOT_PROMOTED = 3
"""Exit status."""

_RUN_TAG = "mst.promotion"


@dataclass(frozen=True)
class Request:
    """What a promotion is asked for with."""

    resources: Resources = field(default_factory=Resources)
    data: Sequence[str] = ()
    """Sources to compare on; none for those that the champion was judged by."""
    max_objects: int | None = None
    max_clicks: int | None = None
    rules: Rules = field(default_factory=Rules)
    force: str | None = None
    """A reason to promote whatever the rules say."""
    dry_run: bool = False
    keep: Path = PROJECT / "out" / "evaluations"


def promote(uri: str, folder: UPath, request: Request) -> tuple[Decision, Outcome | None]:
    """Compare a run's best checkpoint with the champion, and register it if it wins; Ray must be connected.

    Args:
        uri: of the tracking server.
        folder: of the run.
        request: see `Request`.

    Returns:
        What the rules say, and what became of the promotion; None where there was none.

    Raises:
        CheckpointError: no whole checkpoint in the folder, or MLflow has no run of it.
        MSTError: champion or data cannot be used.
    """
    with plainly(uri), tempfile.TemporaryDirectory() as scratch:
        offer = candidate(uri, folder, Path(scratch))
        client = connect(uri)
        seen = standing(client)
        terms = _terms(request, seen.champion, offer.config)
        ours = evaluate_on(offer.files, terms)
        rival = None
        if seen.champion:
            rival = _rival(uri, seen.champion, terms, forced=request.force is not None)
        decision = decide(records_of(ours), rival, terms.max_clicks, request.rules)
        show(decision, offer, seen.champion, terms)
        if request.dry_run:
            return decision, None
        if not decision.is_promoted and request.force is None:
            client.set_tag(offer.tracked.run_id, _RUN_TAG, f"refused: {decision.why()}")
            return decision, None
        promotion = _promotion(decision, seen.champion, request.force)
        outcome = publish(client, offer, seen, promotion, decision, ours, terms)
        became = CHAMPION if outcome.is_champion else "overtaken"
        client.set_tag(offer.tracked.run_id, _RUN_TAG, f"version {outcome.version}: {became}")
        return decision, outcome


def show(decision: Decision, offer: Candidate, champion: ModelVersion | None, terms: Terms) -> None:
    """Print what each rule says."""
    against = f"against version {champion.version}, the champion" if champion else "is the first"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{offer.saved.path} {against}, on {', '.join(terms.data.values())}")
    validated = named(offer.config.data.val, as_path(offer.config.data.root)).values()
    if chosen_by := sorted(set(validated) & set(terms.data.values())):
        text = f"this checkpoint was chosen by {', '.join(chosen_by)}: give --data that neither has seen"
        console.print(text, style="yellow")
    table = Table(box=SIMPLE_HEAD)
    for column in ("rule", "holds", "finding"):
        table.add_column(column, overflow="fold")
    for each in decision.reasons:
        table.add_row(each.rule, "yes" if each.holds else "[red]no", each.finding)
    console.print(table)


def show_log(client: MlflowClient) -> None:
    """Print who promoted what, when and why."""
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


def _terms(request: Request, champion: ModelVersion | None, config: Config) -> Terms:
    """What the models are compared on: what was asked for, else what the champion was judged by."""
    judged = {} if champion is None else champion.tags
    if request.data:
        data = named(request.data, UPath(Path.cwd()))
    elif champion is None:
        data = named(config.data.val, as_path(config.data.root))
    elif DATA in judged:
        data = json.loads(judged[DATA])
    else:
        raise ConfigError(
            f"version {champion.version}, the champion, does not tell what it was judged by; "
            "give --data SOURCE"
        )
    is_same = not request.data and champion is not None
    max_objects = int(judged[MAX_OBJECTS]) if is_same and judged.get(MAX_OBJECTS) else None
    max_clicks = int(judged[MAX_CLICKS]) if is_same else config.eval.max_clicks
    return Terms(
        data=data,
        max_clicks=request.max_clicks or max_clicks,
        max_objects=request.max_objects or max_objects,
        resources=request.resources,
        keep=request.keep,
    )


def _promotion(decision: Decision, champion: ModelVersion | None, force: str | None) -> Promotion:
    if not decision.is_promoted:
        return Promotion("forced", f"{force} (against the rules: {decision.why()})")
    if champion is None:
        return Promotion("first", "there was no champion")
    return Promotion("better", decision.why())


def _rival(uri: str, champion: ModelVersion, terms: Terms, *, forced: bool) -> Records:
    """What the champion does; nothing where it cannot be used any more and need not be."""
    address = f"models:/{REGISTERED_MODEL}/{champion.version}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            return records_of(evaluate_on(fetch_checkpoint(uri, address, Path(folder)), terms))
    except MSTError as error:
        if forced:
            return {}
        raise type(error)(f"the champion: {error}; --force REASON promotes without comparing") from None


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
    parser.add_argument("--max-objects", type=count, help="of each data set, evenly spread")
    parser.add_argument("--max-clicks", type=count, help="for each object (default: the model's)")
    parser.add_argument("--dry-run", action="store_true", help="compare, and change nothing")
    parser.add_argument(
        "--force", metavar="REASON", help="promote whatever the rules say; the reason is kept"
    )
    rules = parser.add_argument_group("rules")
    for name, setting in Rules.model_fields.items():
        text = f"{setting.description} (default {setting.default})"
        flag = f"--{name.replace('_', '-')}"
        rules.add_argument(flag, dest=name, type=float, default=setting.default, metavar="X", help=text)
    parser.add_argument("--num-workers", type=count, default=1, help="Ray actors that share the objects")
    parser.add_argument("--cpus-per-worker", type=count, help="default: all cores, divided")
    parser.add_argument("--use-gpu", action="store_true", help="one GPU for each worker")
    return parser


def _rules(arguments: argparse.Namespace) -> Rules:
    try:
        return Rules(**{name: getattr(arguments, name) for name in Rules.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{flag}: {first['msg']}, not {first['input']}") from None


def main() -> None:
    """Run the command line."""
    arguments = parse(_parser(), None)
    uri = tracking_uri()
    if arguments.run is None:
        with plainly(uri):
            _without_a_run(connect(uri), arguments)
        return
    if arguments.force is not None and not arguments.force.strip():
        raise ConfigError("--force needs a reason, which is kept with the version")
    rules = _rules(arguments)
    cluster.connect()
    request = Request(
        resources=resources_of(arguments),
        data=arguments.data,
        max_objects=arguments.max_objects,
        max_clicks=arguments.max_clicks,
        rules=rules,
        force=arguments.force,
        dry_run=arguments.dry_run,
    )
    storage, slash, name = arguments.run.rstrip("/").rpartition("/")
    decision, outcome = promote(uri, run_folder(storage or slash or ".", name), request)
    _tell(decision, outcome)


def _without_a_run(client: MlflowClient, arguments: argparse.Namespace) -> None:
    if arguments.log:
        show_log(client)
    else:
        _announce(roll_back(client, arguments.rollback, arguments.version))


def _tell(decision: Decision, outcome: Outcome | None) -> None:
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

"""Compare a run's best checkpoint with the champion, and register it if it wins."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from upath import UPath

from mst.checkpoint import read_config
from mst.config import Config
from mst.data.files import as_path
from mst.errors import ConfigError, MSTError
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Actors
from pipelines.evaluation.data_sets import seen_by
from pipelines.promotion.candidate import DATA, MAX_CLICKS, MAX_OBJECTS, Candidate, candidate, publish
from pipelines.promotion.comparison import Evaluated, Terms, evaluate_on, named, records_of
from pipelines.promotion.looks import judge, judge_first, look_of, registry_look
from pipelines.promotion.rules import Decision, Rules, decide
from pipelines.registry.versions import (
    CHAMPION,
    REGISTERED_MODEL,
    Outcome,
    Promotion,
    fetch_checkpoint,
    registry_client,
    snapshot,
)
from pipelines.storage import PROJECT
from pipelines.training.tracking import plainly

T = TypeVar("T")

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
    seen_data: bool = False
    """Whether data may judge that a model was trained on, or chosen by."""
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
        ConfigError: a data set is one that either was trained on, or chosen by.
        MSTError: champion or data cannot be used.
    """
    with plainly(uri), tempfile.TemporaryDirectory() as scratch:
        offer = candidate(uri, folder, Path(scratch))
        client = registry_client(uri)
        seen = snapshot(client)
        terms = _terms(request, seen.champion, offer.config)
        if not request.seen_data:
            _check_unseen("the challenger", offer.config, terms)
        champion_files = None
        if seen.champion:
            address, place = f"models:/{REGISTERED_MODEL}/{seen.champion.version}", Path(scratch, "champion")
            champion_files = _of_champion(lambda: fetch_checkpoint(uri, address, place), request)
        if champion_files and not request.seen_data:
            _check_unseen("the champion", read_config(champion_files), terms)
        with Actors(request.resources) as actors:
            ours = evaluate_on(offer.files, terms, actors)
            decision = _decide(client, offer, seen.champion, champion_files, ours, terms, request, actors)
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


def _decide(
    client: MlflowClient,
    offer: Candidate,
    champion: ModelVersion | None,
    champion_files: Path | None,
    ours: Mapping[str, Evaluated],
    terms: Terms,
    request: Request,
    actors: Actors,
) -> Decision:
    """Let the rules speak; a comparison with a champion is kept, and counts.

    Args:
        client: of the registry.
        offer: the challenger.
        champion: None where there is none.
        champion_files: the champion's files; None where there are none that can be used.
        ours: what the challenger did.
        terms: of the comparison.
        request: see `Request`.
        actors: that evaluate.
    """
    if champion is None and request.force is None:
        return judge_first(offer.files, ours, terms, request.rules, actors)
    if champion is None:
        return decide(records_of(ours), None, terms.max_clicks, request.rules)
    theirs = (
        _of_champion(lambda: evaluate_on(champion_files, terms, actors), request) if champion_files else None
    )
    if champion_files is None or theirs is None:
        return decide(records_of(ours), {}, terms.max_clicks, request.rules)
    names = f"{offer.folder.name}, step {offer.saved.step}", f"version {champion.version}"
    notes = [*["dry run"] * request.dry_run, *([f"forced: {request.force}"] if request.force else [])]
    kept = registry_look(client, look_of(names, ours, theirs))
    return judge(kept, (offer.files, ours), (champion_files, theirs), terms, request.rules, actors, *notes)


def _check_unseen(who: str, config: Config, terms: Terms) -> None:
    """Refuse to judge a model on what it was trained on or chosen by."""
    if seen := seen_by(config, list(terms.data.values()), UPath(Path.cwd())):
        raise ConfigError(
            f"{who} was trained on {', '.join(seen)}, or chosen by it, so that it judges nothing fairly; "
            "give --data that neither has seen, or --seen-data to judge by it all the same"
        )


def show(decision: Decision, offer: Candidate, champion: ModelVersion | None, terms: Terms) -> None:
    """Print what was compared, and what each rule says."""
    against = f"against version {champion.version}, the champion" if champion else "is the first"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{offer.saved.path} {against}, on {', '.join(terms.data.values())}")
    show_reasons(decision, console)


def show_reasons(decision: Decision, console: Console) -> None:
    """Print what each rule says."""
    table = Table(box=SIMPLE_HEAD)
    for column in ("rule", "holds", "finding"):
        table.add_column(column, overflow="fold")
    for each in decision.reasons:
        table.add_row(each.rule, "yes" if each.holds else "[red]no", each.finding)
    console.print(table)


def _terms(request: Request, champion: ModelVersion | None, config: Config) -> Terms:
    """What the models are compared on: what was asked for, else what the champion was judged by."""
    judged = {} if champion is None else champion.tags
    if request.data:
        data = named(request.data, UPath(Path.cwd()))
    elif champion is None:
        data = named(config.data.val, as_path(config.data.root))  # refused without `seen_data`
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
        keep=request.keep,
    )


def _promotion(decision: Decision, champion: ModelVersion | None, force: str | None) -> Promotion:
    if not decision.is_promoted:
        return Promotion("forced", f"{force} (against the rules: {decision.why()})")
    if champion is None:
        return Promotion("first", f"there was no champion; {decision.why()}")
    return Promotion("better", decision.why())


def _of_champion(ask: Callable[[], T], request: Request) -> T | None:
    """Ask something of the champion; None where it cannot be used any more and need not be."""
    try:
        return ask()
    except MSTError as error:
        if request.force is not None:
            return None
        raise type(error)(f"the champion: {error}; --force REASON promotes without comparing") from None

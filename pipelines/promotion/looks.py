"""How often data were looked at: each comparison is kept, and after many of them a gain has to be clearer.

Who compares often enough on the same data finds a gain that is none. So the k-th comparison on a data set may
take chance for a gain with a probability of 5 % / (k (k + 1)), which is 2.5 % for the first. These add up to
5 % over any number of comparisons (alpha spending, Demets and Lan 1994, by a schedule that never ends).
Comparing the same two models again is no new look.

The registry keeps comparisons as runs of the experiment `mst_comparisons`, and the model that ships in
`comparisons.jsonl` beside its weights. Nothing is ever taken out of either.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlflow import MlflowClient

from mst.errors import CheckpointError
from pipelines.evaluation.actors import Actors
from pipelines.promotion.comparison import Evaluated, Terms, evaluate_floor, records_of, time_by_turns
from pipelines.promotion.rules import Decision, Rules, decide
from pipelines.registry.versions import author, now
from pipelines.training.tracking import experiment_id

EXPERIMENT = "mst_comparisons"
FILE = "comparisons.jsonl"

_SPENT = 0.05  # over all comparisons on a data set: the probability that any of them takes chance for a gain
_UNFINISHED = "it did not end"


@dataclass(frozen=True)
class Look:
    """One comparison of a challenger with a champion."""

    challenger: str
    challenger_sha256: str
    champion: str
    champion_sha256: str
    data: Mapping[str, str]
    """The digest of each data set, by its name."""
    by: str = ""
    at: str = ""
    outcome: str = _UNFINISHED


def look_of(
    names: tuple[str, str], challenger: Mapping[str, Evaluated], champion: Mapping[str, Evaluated]
) -> Look:
    """Return the comparison of what two models did, which are called by these names."""
    digests = [next(iter(each.values())).evaluation.about["model_sha256"] for each in (challenger, champion)]
    data = {name: each.evaluation.about["data_sha256"] for name, each in challenger.items()}
    return Look(names[0], digests[0], names[1], digests[1], data, author(), now())


def number_of(look: Look, earlier: Sequence[Look]) -> int:
    """Return a comparison's number, from 1, on that of its data sets on which there were the most."""
    return max(_number_on(digest, look, earlier) for digest in look.data.values())


def level_of(number: int) -> float:
    """Return the level of the intervals that decide the comparison of this number on the same data."""
    return 1 - 2 * _SPENT / (number * (number + 1))


@contextmanager
def registry_look(client: MlflowClient, look: Look) -> Iterator[tuple[int, list[str]]]:
    """Keep a comparison in the registry from its beginning on, so that one which is cut short counts.

    Yields:
        Its number, and a list that takes its outcome.
    """
    experiment = experiment_id(client, EXPERIMENT)
    run = client.create_run(experiment, tags=_tags(look), run_name=look.challenger)
    known = _runs(client, experiment)
    place = [run_id for run_id, _ in known].index(run.info.run_id)
    said: list[str] = []
    yield number_of(look, [each for _, each in known[:place]]), said
    client.set_tag(run.info.run_id, "outcome", "; ".join(said) or _UNFINISHED)
    client.set_terminated(run.info.run_id)


def registry_looks(client: MlflowClient) -> list[Look]:
    """Return all comparisons that the registry keeps, the first one first."""
    return [look for _, look in _runs(client, experiment_id(client, EXPERIMENT))]


def read_looks(folder: Path) -> list[Look]:
    """Return all comparisons that are kept beside a model's weights, the first one first.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = folder / FILE
    lines = file.read_text().splitlines() if file.exists() else []
    try:
        return [Look(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: a line is no comparison ({error}); take the file from git") from None


@contextmanager
def folder_look(folder: Path, look: Look) -> Iterator[tuple[int, list[str]]]:
    """Keep a comparison beside a model's weights, also one that is cut short.

    Yields:
        As `registry_look`.
    """
    said: list[str] = []
    try:
        yield number_of(look, read_looks(folder)), said
    finally:
        outcome = "; ".join(said) or _UNFINISHED
        with (folder / FILE).open("a") as file:
            file.write(json.dumps(asdict(replace(look, outcome=outcome))) + "\n")


def judge(
    kept: AbstractContextManager[tuple[int, list[str]]],
    challenger: tuple[Path, Mapping[str, Evaluated]],
    champion: tuple[Path, Mapping[str, Evaluated]],
    terms: Terms,
    rules: Rules,
    actors: Actors,
    *notes: str,
) -> Decision:
    """Let the rules decide at the level of a comparison that is kept; times are taken by turns.

    Args:
        kept: of `registry_look` or `folder_look`.
        challenger: its checkpoint, and what it did on each data set.
        champion: the same of the champion.
        terms: of the comparison.
        rules: see `pipelines.promotion.rules.Rules`.
        actors: that evaluated both.
        notes: kept with the outcome.
    """
    timed = time_by_turns(challenger[0], champion[0], terms, actors)
    with kept as (number, said):
        level = level_of(number)
        ours, theirs = (records_of(did) for _, did in (challenger, champion))
        decision = decide(ours, theirs, terms.max_clicks, rules, level, timed=timed)
        said += [*notes, f"{'better' if decision.is_promoted else 'refused'}: {decision.why()}"]
    if number > 1:
        print(f"comparison {number} on the same data: intervals are of {100 * level:.4g} %")
    return decision


def judge_first(
    checkpoint: Path, did: Mapping[str, Evaluated], terms: Terms, rules: Rules, actors: Actors
) -> Decision:
    """Let the rules decide on a model where there is no champion; arguments as of `judge`."""
    floor = evaluate_floor(checkpoint, terms, actors)
    return decide(records_of(did), None, terms.max_clicks, rules, floor=floor)


def _number_on(digest: str, look: Look, earlier: Sequence[Look]) -> int:
    pairs = [_pair(each) for each in earlier if digest in each.data.values()]
    distinct = list(dict.fromkeys([*pairs, _pair(look)]))
    return 1 + distinct.index(_pair(look))


def _pair(look: Look) -> tuple[str, str]:
    return look.challenger_sha256, look.champion_sha256


def _tags(look: Look) -> dict[str, str]:
    return {**asdict(look), "data": json.dumps(dict(look.data))}


def _runs(client: MlflowClient, experiment: str) -> list[tuple[str, Look]]:
    """Each comparison with the id of its run, the first one first."""
    found: list[tuple[str, Look]] = []
    token = None
    while True:
        page = client.search_runs([experiment], order_by=["start_time ASC"], page_token=token)
        for run in page:
            tags = {name: run.data.tags[name] for name in Look.__dataclass_fields__}
            found.append((run.info.run_id, Look(**{**tags, "data": json.loads(tags["data"])})))
        token = page.token
        if not token:
            return found

"""Evaluate models on the same data sets by the same protocol, and keep what was found.

A champion was a challenger once: its evaluation is taken from the folder where it was kept, as long as code,
data, protocol and machine are the same. Times that are compared are taken anew, by turns.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray
from ray.exceptions import RayTaskError
from upath import UPath

from mst.data.readers.evaluation_sets import EVALUATION_SETS
from mst.data.sources import SampleSet, Source, parse_source
from mst.evaluation import ObjectRecord
from mst.evaluation.peers import PEERS
from mst.evaluation.report import Evaluation, Measure
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Actors, Precision, Protocol
from pipelines.evaluation.data_sets import DataSet, read_data_set
from pipelines.evaluation.evaluate import evaluate_on_cluster, made_by
from pipelines.evaluation.methods import UNTRAINED, Subject, make_peers, read_model
from pipelines.promotion.rules import Records, nocs
from pipelines.training.provenance import machine

_TIMED = 12  # objects of each data set that two models are timed on


@dataclass(frozen=True)
class Terms:
    """On what models are compared, and how."""

    data: Mapping[str, str]
    """Sources by the names of their data sets; their paths absolute."""
    max_clicks: int
    """For each object."""
    max_objects: int | None
    """Of each data set, evenly spread; None for all."""
    keep: Path
    """Folder of all evaluations."""
    precision: Precision = "fp32"
    """Of the forwards."""


class Evaluated(NamedTuple):
    """What a model did on a data set."""

    evaluation: Evaluation
    samples: SampleSet
    """The objects."""
    folder: Path
    """Of `records.parquet` and `summary.json`."""


class Figures(NamedTuple):
    """The figures of a data set."""

    objects: int
    noc85: Measure
    noc90: Measure
    ms_per_click: float

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of a version that tell them."""
        texts = {**self._asdict(), "ms_per_click": f"{self.ms_per_click:.1f}"}
        return {f"{figure}.{name}": str(value) for figure, value in texts.items()}


def figures(evaluation: Evaluation) -> Figures:
    """Return what a card and the tags of a version tell of an evaluation."""
    measures = evaluation.measures
    return Figures(
        len(evaluation.records),
        measures["noc85"],
        measures["noc90"],
        1000 * measures["seconds_per_click"].value,
    )


def named(sources: Sequence[str], root: UPath) -> dict[str, str]:
    """Name data sets, by their format or their file, and make their paths absolute.

    Raises:
        ConfigError: a source's name is wrong.
    """
    found: dict[str, str] = {}
    for source in (parse_source(text, root) for text in sources):
        name = source.format if source.format in EVALUATION_SETS else source.path.stem
        name = re.sub(r"[^\w.-]", "_", name)  # what MLflow takes in the name of a tag
        number = next(n for n in itertools.count(1) if _numbered(name, n) not in found)
        found[_numbered(name, number)] = _text(source)
    return found


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _text(source: Source) -> str:
    images = f"?images={source.images}" if source.images else ""
    return f"{source.format}:{source.path}{images}"


def evaluate_on(checkpoint: Path, terms: Terms, actors: Actors) -> dict[str, Evaluated]:
    """Evaluate a checkpoint on each data set, going on with what is kept; Ray must be connected.

    Raises:
        MSTError: as `pipelines.evaluation.evaluate.evaluate_on_cluster`.
    """
    return _evaluate(read_model(str(checkpoint), checkpoint), terms, actors)


def evaluate_floor(checkpoint: Path, terms: Terms, actors: Actors) -> dict[str, Records]:
    """Evaluate what a first champion has to be better than: itself untrained, and the best classical peer.

    Args:
        checkpoint: of the model.
        terms: on what.
        actors: that evaluate.

    Returns:
        Records by method and data set.
    """
    model = read_model(str(checkpoint), checkpoint)
    found = {
        peer.name: records_of(_evaluate(peer, terms, actors))
        for peer in make_peers((UNTRAINED, *PEERS), model)
    }
    clicks = {
        name: float(np.mean([np.mean(nocs(each, 0.9, terms.max_clicks)) for each in records.values()]))
        for name, records in found.items()
    }
    best = min(PEERS, key=clicks.__getitem__)
    return {UNTRAINED: found[UNTRAINED], f"{best}, the best classical peer": found[best]}


def time_by_turns(
    challenger: Path, champion: Path, terms: Terms, actors: Actors
) -> tuple[dict[str, list[ObjectRecord]], dict[str, list[ObjectRecord]]]:
    """Let two models click on a few of the same objects by turns, so that a busy moment is busy for both.

    Returns:
        What the challenger and the champion did, by data set.

    Raises:
        MSTError: a model or the data cannot be used.
    """
    subjects = [read_model(str(each), each) for each in (challenger, champion)]
    shared = [ray.put(each.method) for each in subjects]
    protocols = [_protocol(each, terms) for each in subjects]
    (actor,) = actors.at_most(1)
    ours, theirs = dict[str, list[ObjectRecord]](), dict[str, list[ObjectRecord]]()
    for name, source in terms.data.items():
        samples = read_data_set(f"{name}={source}", min(_TIMED, terms.max_objects or _TIMED)).samples
        try:
            ours[name], theirs[name] = ray.get(actor.by_turns.remote(samples.loaders, shared, protocols))
        except RayTaskError as error:
            raise error.cause from None
    return ours, theirs


def _protocol(subject: Subject, terms: Terms) -> Protocol:
    settings = subject.eval.model_copy(update={"max_clicks": terms.max_clicks})
    return Protocol(eval=settings, precision=terms.precision)


def _evaluate(subject: Subject, terms: Terms, actors: Actors) -> dict[str, Evaluated]:
    protocol, found = _protocol(subject, terms), {}
    for name, source in terms.data.items():
        data = read_data_set(f"{name}={source}", terms.max_objects)
        folder = terms.keep / _key(subject, data, protocol, actors.resources)
        evaluation = evaluate_on_cluster(subject, data, folder, protocol, actors)
        found[name] = Evaluated(evaluation, data.samples, folder)
    return found


def records_of(evaluated: Mapping[str, Evaluated]) -> Records:
    """Return what a model did on each data set, as it is compared with another."""
    return {name: each.evaluation.records for name, each in evaluated.items()}


def _key(subject: Subject, data: DataSet, protocol: Protocol, resources: Resources) -> str:
    here = machine()
    made_from = {
        **made_by(subject, data, protocol),
        "machine": [here["cpu"], here.get("gpu")],
        "resources": [resources.num_workers, *resources.per_worker().items()],
    }
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]

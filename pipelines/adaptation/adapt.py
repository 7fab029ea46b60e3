"""Adapt a model to a user's photos, and say what that is worth, there and elsewhere.

NAME          the run: checkpoints, as of any training
NAME.data     the photos, small copies; the model that it began with; features of the encoder
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from ray.actor import ActorHandle
from upath import UPath

from mst.checkpoint import WEIGHTS, copy_for_use, read_config, verify
from mst.data.sources import check_sources
from mst.errors import ConfigError, DataError
from mst.evaluation.statistics import Comparison, paired_comparison
from mst.training.checkpoints import best, newest
from pipelines.adaptation.experiment import experiment
from pipelines.adaptation.photos import HELD_OUT, TRAIN, Photos, count_of, keep_photos
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Actors
from pipelines.promotion.candidate import DATA
from pipelines.promotion.comparison import Evaluated, Terms, evaluate_on, named
from pipelines.promotion.rules import nocs
from pipelines.registry.versions import (
    CHAMPION,
    REGISTERED_MODEL,
    checkpoint_of,
    registry_client,
    snapshot,
)
from pipelines.storage import PROJECT
from pipelines.training.driver import train_driver
from pipelines.training.tracking import plainly

CHAMPION_ADDRESS = f"models:/{REGISTERED_MODEL}@{CHAMPION}"
YOURS = "your photos"

_TARGET = 0.9
_BASE, _LOCK = "base", "adapting.lock"


@dataclass(frozen=True)
class Plan:
    """What adapts what, and by what it is judged."""

    base: str
    """Folder of a checkpoint, or address of a registered model."""
    reference: Mapping[str, str] = field(default_factory=dict)
    """Sources of data sets elsewhere, by name; their paths absolute."""
    max_objects: int = 120
    """Of each data set, evenly spread."""
    max_clicks: int = 20
    """For each object."""
    resources: Resources = field(default_factory=Resources)
    keep: Path = PROJECT / "out" / "evaluations"
    """Folder of evaluations."""


class Finding(NamedTuple):
    """What adapting is worth on a data set."""

    data: str
    before: float
    """Mean number of clicks to an IoU of 90 %."""
    after: float
    change: Comparison
    photos: int

    def __str__(self) -> str:
        mean, interval = self.change.told(2)
        clicks = f"{self.before:.2f} clicks to 90 % before, {self.after:.2f} after"
        return f"{self.data}: {clicks} ({mean} {interval}, {self.photos} photos)"


def adapt(uri: str, folder: UPath, photos: Photos, plan: Plan, board: ActorHandle | None) -> list[Finding]:
    """Train, and compare with what there was before; Ray must be connected.

    A run of the same name goes on where it was.

    Args:
        uri: of the MLflow server.
        folder: of the run; local.
        photos: to learn from, and to judge by.
        plan: see `Plan`.
        board: told of the progress.

    Returns:
        What it is worth on the held-out photos, where there are some, and then on each reference.

    Raises:
        ConfigError: another adaptation is under way there, or the name is of other photos.
        MSTError: the model cannot be read, or whatever stopped the training.
    """
    place = Path(f"{folder}.data")
    with alone(place.parent), plainly(uri):
        base = _base(plan.base, place)
        about = {"photos": photos.digest(), "model": verify(base)["sha256"][WEIGHTS]}
        keep_photos(photos, about, place)
        device = torch.device("cuda" if plan.resources.use_gpu else "cpu")
        config = experiment(read_config(base), base, place, count_of(place, TRAIN), device)
        if not _is_trained(folder):
            train_driver(config, folder, plan.resources, uri=uri, board=board, on_epoch=lambda _: None)
        with Actors(plan.resources) as actors:
            return _findings(base, UPath(best(folder).path), terms_of(place, plan), actors)


def terms_of(place: Path, plan: Plan) -> Terms:
    """Return on what the models are compared."""
    yours = {YOURS: f"index:{place / HELD_OUT}?images={place}"} if (place / HELD_OUT).exists() else {}
    return Terms(
        data={**yours, **plan.reference},
        max_clicks=plan.max_clicks,
        max_objects=plan.max_objects,
        keep=plan.keep,
    )


def reference_of(uri: str, given: Sequence[str], base: str) -> dict[str, str]:
    """Return by what it is judged elsewhere: what is given, or what the champion was judged by.

    Args:
        uri: of the registry.
        given: sources.
        base: that is adapted.
    """
    if given:
        return named(given, UPath(Path.cwd()))
    champion = snapshot(registry_client(uri)).champion if base == CHAMPION_ADDRESS else None
    judged: dict[str, str] = json.loads(champion.tags.get(DATA, "{}")) if champion else {}
    return {name: source for name, source in judged.items() if _is_there(source)}


def _is_there(source: str) -> bool:
    try:
        check_sources([source], UPath("/"))
    except DataError:
        return False
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep every other adaptation out of a folder of runs.

    Raises:
        ConfigError: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another adaptation runs in {folder}; wait until it is finished") from None
        yield


def _base(address: str, place: Path) -> Path:
    """Keep the model to begin with beside the run, which goes on with it whoever is champion by then."""
    kept = place.with_name(f"{place.name}.{_BASE}")
    if not kept.exists():
        staged = kept.with_name(f"{kept.name}.part")
        shutil.rmtree(staged, ignore_errors=True)
        copy_for_use(checkpoint_of(address, staged / "fetched"), staged / _BASE)
        (staged / _BASE).rename(kept)
        shutil.rmtree(staged)
    return kept


def _is_trained(folder: UPath) -> bool:
    found = newest(folder)
    return found is not None and found.is_finished


def _findings(base: Path, adapted: UPath, terms: Terms, actors: Actors) -> list[Finding]:
    if not terms.data:
        return []
    before = evaluate_on(base, terms, actors)
    after = evaluate_on(Path(str(adapted)), terms, actors)
    return [_finding(name, before[name], after[name], terms.max_clicks) for name in terms.data]


def _finding(name: str, before: Evaluated, after: Evaluated, max_clicks: int) -> Finding:
    ours, theirs = (nocs(each.evaluation.records, _TARGET, max_clicks) for each in (after, before))
    images = [each.image_id for each in after.evaluation.records]
    change = paired_comparison(ours, theirs, images)
    return Finding(name, sum(theirs) / len(theirs), sum(ours) / len(ours), change, len(set(images)))

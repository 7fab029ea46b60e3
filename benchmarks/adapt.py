"""What adapting to somebody's photos is worth, how long it takes, and whether nonsense is refused.

    make bench-adapt
    python -m benchmarks.adapt --model checkpoints/mst_small --photos 20 --users household --nonsense 20

Each "user" is a set of photos that the model never saw (`--data`): some teach, others judge.
`adapt_noc_gain_20_USER` is by how many clicks to 90 % an object of the held-out photos needs fewer after 20
photos, with its interval over photos; `adapt_forgetting_noc` is what is lost on the reference, where there is
one. For `nonsense_promoted` masks are those of other photos, and the gate's rules decide.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from upath import UPath

from benchmarks.shared.harness import Row, report, row
from mst.command_line import count, parse, run
from mst.data.annotations import ImageRecord
from mst.data.pixels.encode import annotate
from mst.data.pixels.images import resize
from mst.training.checkpoints import best
from pipelines import cluster
from pipelines.adaptation.adapt import YOURS, Finding, Plan, adapt, terms_of
from pipelines.adaptation.photos import Photos, read_photos
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Actors
from pipelines.promotion.comparison import evaluate_on, named, records_of
from pipelines.promotion.rules import Rules, decide
from pipelines.storage import PROJECT

USERS = ("granules", "household", "waste_bottles")
MINUTES = 10.0
FORGETTING = 0.1

_JUDGE = 24  # photos of each user that are held out
_MOST_OBJECTS, _MOST_CLICKS = 60, 20


@dataclass(frozen=True)
class Setting:
    """What all measurements share."""

    model: str
    data: Path
    reference: dict[str, str]
    folder: Path


def photos_of(user: str, data: Path) -> Photos:
    """All photos of a user: `_JUDGE` of them judge."""
    source = f"labels:{data / 'masks' / user}?images={data / 'images' / user}"
    found = read_photos([source], [], UPath("/"))
    everything = [*found.held_out, *found.train]
    return Photos(everything[_JUDGE:], everything[:_JUDGE], found.problems)


def adapted(setting: Setting, name: str, photos: Photos) -> tuple[list[Finding], float, Plan]:
    """Adapt to photos; return what it is worth, and the minutes that it took."""
    plan = Plan(
        setting.model,
        setting.reference,
        max_objects=_MOST_OBJECTS,
        max_clicks=_MOST_CLICKS,
        resources=Resources(cpus_per_worker=os.cpu_count() or 1),
        keep=setting.folder / "evaluations",
    )
    start, uri = time.monotonic(), f"sqlite:///{setting.folder / 'mlflow.db'}"
    found = adapt(uri, UPath(setting.folder / "runs" / name), photos, plan, None)
    return found, (time.monotonic() - start) / 60, plan


def curve(setting: Setting, user: str, counts: Sequence[int]) -> Iterator[Row]:
    """What each number of photos is worth to a user."""
    photos = photos_of(user, setting.data)
    for number in counts:
        if number > len(photos.train):
            continue
        some = replace(photos, train=photos.train[:number])
        found, minutes, _ = adapted(setting, f"{number}_of_{user}", some)
        yours = next(each for each in found if each.data == YOURS)
        yield row(f"noc90_before_{user}", yours.before, "clicks")
        gain = -yours.change.mean_difference
        yield row(f"adapt_noc_gain_{number}_{user}", gain, "clicks")
        yield row(f"adapt_noc_gain_{number}_{user}_low", -yours.change.high, "clicks", at_least=0)
        yield row(f"adapt_noc_gain_{number}_{user}_high", -yours.change.low, "clicks")
        yield row(f"adapt_minutes_{number}_{user}", minutes, "min", at_most=MINUTES)
        for each in found:
            if each.data != YOURS:
                lost = each.change.mean_difference
                yield row(f"adapt_forgetting_noc_{number}_{user}", lost, "clicks", at_most=FORGETTING)


def nonsense(photos: Photos, seed: int) -> Photos:
    """Give each photo the masks of another one, with no photo on both sides."""
    rng = np.random.default_rng(seed)

    def shuffled(records: Sequence[ImageRecord]) -> list[ImageRecord]:
        order = np.roll(rng.permutation(len(records)), 1)
        return [_with_masks_of(each, records[place]) for each, place in zip(records, order, strict=True)]

    return replace(photos, train=shuffled(photos.train), held_out=shuffled(photos.held_out))


def _with_masks_of(record: ImageRecord, other: ImageRecord) -> ImageRecord:
    masks = [
        resize(each.decode().astype(np.uint8) * 255, record.height, record.width) > 127
        for each in other.objects
    ]
    objects = [annotate(mask, f"{number}") for number, mask in enumerate(masks) if mask.any()]
    return record.with_objects(objects)


def promoted_nonsense(setting: Setting, user: str, tries: int, number: int) -> Iterator[Row]:
    """How often a model that learnt nonsense would be promoted."""
    photos, promoted = photos_of(user, setting.data), 0
    photos = replace(photos, train=photos.train[:number])
    for seed in range(tries):
        name = f"nonsense_{seed}_of_{user}"
        _, _, plan = adapted(setting, name, nonsense(photos, seed))
        terms = terms_of(setting.folder / "runs" / f"{name}.data", plan)
        with Actors(plan.resources) as actors:
            base = setting.folder / "runs" / f"{name}.data.base"
            before = records_of(evaluate_on(base, terms, actors))
            after = records_of(evaluate_on(_best(setting, name), terms, actors))
        promoted += decide(after, before, terms.max_clicks, Rules(max_ms=1e6)).is_promoted
        yield row(f"nonsense_promoted_of_{seed + 1}", promoted, "tries", at_most=0)


def _best(setting: Setting, name: str) -> Path:
    return Path(str(best(UPath(setting.folder / "runs" / name)).path))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default=str(PROJECT / "checkpoints" / "mst_small"), help="that is adapted")
    parser.add_argument("--data", type=Path, default=PROJECT.parent / "shared" / "data" / "more")
    parser.add_argument("--users", nargs="+", default=USERS, help="folders of photos in it")
    parser.add_argument("--photos", nargs="+", type=count, default=(5, 20, 100), help="to learn from")
    parser.add_argument("--reference", nargs="+", default=(), metavar="SOURCE", help="not to be forgotten")
    parser.add_argument("--nonsense", type=int, default=0, metavar="N", help="tries with shuffled masks")
    parser.add_argument("--folder", type=Path, help="to go on in (default: one that is removed)")
    arguments = parse(parser, None)
    cluster.connect()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        reference = named(arguments.reference, UPath(Path.cwd()))
        setting = Setting(arguments.model, arguments.data.resolve(), reference, folder)

        def rows() -> Iterator[Row]:
            for user in arguments.users:
                yield from curve(setting, user, arguments.photos)
            if arguments.nonsense:
                yield from promoted_nonsense(
                    setting, arguments.users[0], arguments.nonsense, arguments.photos[0]
                )

        report("adapt", rows())


if __name__ == "__main__":
    run(main)

"""One trial of a sweep: training's own driver, in a process that Ray Tune starts.

With one worker the process is that worker: Ray Tune gives it its cores or GPU, and keeps it for further
trials. With several it waits for them.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune
from ray.train import UserCallback
from ray.util.queue import Queue
from upath import UPath

from mst.errors import CheckpointError
from mst.training.checkpoints import adopt, newest, saved
from pipelines.sweeping.plan import Plan
from pipelines.sweeping.record import Takeover, trial_number
from pipelines.sweeping.search import TOLD
from pipelines.training.callbacks import Forward
from pipelines.training.driver import train_driver
from pipelines.training.tracking import TrackedRun, run_of

TAKEOVER = "takeover"
"""Of a result: the `Takeover` that the trial began with; absent where it began with its own weights."""

_ADDRESS = "address.json"


class Address(NamedTuple):
    """What Ray Tune keeps as a trial's checkpoint: where the checkpoint is, and not the checkpoint itself."""

    run: str
    """Folder of the run."""
    epoch: int


def run_trial(proposal: dict[str, Any], plan: Plan, folder: UPath, parent: TrackedRun) -> None:
    """Train one variant, or go on with it; Ray Tune calls it in a process of its own.

    Args:
        proposal: the variant's settings, and up to which epoch the sweep knows of its validations.
        plan: of the sweep.
        folder: of the sweep; the run is stored in it.
        parent: the sweep's MLflow run.
    """
    told = proposal[TOLD]
    name = tune.get_context().get_trial_id()
    settings = {name: value for name, value in proposal.items() if name != TOLD}
    config, run = plan.config_for(trial_number(name), settings), folder / name
    is_population = plan.scheduler == "pbt"
    takeover: Takeover | None = None
    if given := tune.get_checkpoint():
        takeover = _take_over(run, _read(given), config.train.steps_per_epoch)
    else:
        _tell_what_is_new(run, told)
    if _is_over(run, parent.uri):
        return
    tell = partial(_tell, run=run if is_population else None, takeover=takeover)
    train = partial(
        train_driver,
        config,
        run,
        plan.resources,
        uri=parent.uri,
        parent=parent.run_id,
        allow_change=is_population,
    )
    if plan.resources.is_single:
        train(on_epoch=tell)
        return
    with _forwarded(tell) as callback:
        train(callbacks=[callback])


def _tell_what_is_new(run: UPath, told: int) -> None:
    """Report validations that a killed process saved, but did not live to report."""
    for each in saved(run):
        if each.metrics and each.metrics["epoch"] > told:
            tune.report(each.metrics)


def _is_over(run: UPath, uri: str) -> bool:
    found = newest(run)
    if found is None or not found.is_finished:
        return False
    tracked = run_of(uri, run, found)
    return tracked is not None and tracked.is_finished()


def _take_over(run: UPath, address: Address, steps_per_epoch: int) -> Takeover | None:
    """Go on from another trial's weights where the address is not the run's own."""
    other = UPath(address.run)
    if other == run:
        return None
    there = [each for each in saved(other) if each.metrics]
    wanted = [each for each in there if each.step == address.epoch * steps_per_epoch] or there[-1:]
    if not wanted:  # it has gone on and removed them, at this very moment
        raise CheckpointError(f"{other}: no checkpoint to take over")
    adopt(run, wanted[0].path)
    return Takeover(other.name, wanted[0].step // steps_per_epoch, time.time())


@contextmanager
def _forwarded(tell: Callable[[dict[str, Any]], None]) -> Iterator[UserCallback]:
    """Tell what workers report, as long as the block runs, and all of it before the block is left.

    Ray's own `TuneReportCallback` reports no checkpoint, without which population-based training has nothing
    to exploit.
    """
    queue = Queue(actor_options={"num_cpus": 0})

    def pass_on() -> None:
        while (metrics := queue.get()) is not None:
            tell(metrics)

    teller = threading.Thread(target=pass_on, daemon=True)
    teller.start()
    try:
        yield Forward(queue)
    finally:
        queue.put(None)
        teller.join()
        queue.shutdown()


def _tell(metrics: dict[str, Any], run: UPath | None, takeover: Takeover | None) -> None:
    """Report a validation to Ray Tune.

    Args:
        metrics: its figures.
        run: folder of the run, whose address is reported too; None for none.
        takeover: reported with it; None for none.
    """
    metrics = {**metrics, **({TAKEOVER: list(takeover)} if takeover else {})}
    if run is None:
        tune.report(metrics)
        return
    with tempfile.TemporaryDirectory() as written:
        address = Address(str(run), int(metrics["epoch"]))
        Path(written, _ADDRESS).write_text(json.dumps(address._asdict()))
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(written))


def _read(checkpoint: tune.Checkpoint) -> Address:
    with checkpoint.as_directory() as folder:
        return Address(**json.loads(Path(folder, _ADDRESS).read_text()))

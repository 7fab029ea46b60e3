"""A sweep: proposals, schedulers, budget and record around Ray Tune."""

import logging
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial
from upath import UPath

from mst.data.files import remove
from mst.errors import ConfigError, MSTError, TrainingError
from mst.overrides import override
from pipelines.sweeping.budget import Budget, Limits
from pipelines.sweeping.counting import counted
from pipelines.sweeping.plan import Plan
from pipelines.sweeping.record import Record, Result, Takeover, TrialRecord, trial_number
from pipelines.sweeping.schedulers import replay, scheduler
from pipelines.sweeping.search import TOLD, Proposals
from pipelines.sweeping.table import SweepView
from pipelines.sweeping.trial import TAKEOVER, run_trial
from pipelines.training.callbacks import LASTING
from pipelines.training.tracking import TrackedRun, close_children

Trainable = Callable[[dict[str, Any]], None]

logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that fails is named in a line of ours

_TRIAL_MEMORY = 2**20  # bytes; Ray Tune refuses a trial that asks for nothing
_PENDING = "TUNE_MAX_PENDING_TRIALS_PG"
_SCRATCH = ".ray"  # what Ray Tune writes into a sweep's folder; nothing depends on it


def sweep(
    plan: Plan, folder: UPath, parent: TrackedRun, limits: Limits, view: SweepView
) -> tuple[list[TrialRecord], str | None]:
    """Train variants of a config until as many as planned have ended; Ray must be connected.

    The folder may hold a part of the sweep: trials that have ended stay as they are, and those that were
    interrupted go on from their checkpoints.

    Args:
        plan: what to try and how.
        folder: of the sweep; each trial's run is stored in it.
        parent: the sweep's MLflow run.
        limits: that end it before.
        view: told of the progress.

    Returns:
        All trials, and the limit that was reached, None for none. Some trials are running where one was, or
        where the user has interrupted the sweep.

    Raises:
        ConfigError: the plan cannot be carried out.
        MSTError: no trial was ever validated.
    """
    trials, reached = explore(
        plan, folder, limits, view, partial(run_trial, plan=plan, folder=folder, parent=parent)
    )
    close_children(parent, stopped={each.name for each in trials if each.state in ("stopped", "running")})
    failures = [each.failure for each in trials if each.failure]
    if failures and not any(each.results for each in trials):
        raise MSTError(f"all {len(failures)} trials failed; the first: {failures[0]}")
    return trials, reached


def explore(
    plan: Plan, folder: UPath, limits: Limits, view: SweepView, trainable: Trainable
) -> tuple[list[TrialRecord], str | None]:
    """Let Ray Tune call `trainable`, which reports validations, with proposals, as `sweep` does."""
    record = Record(plan, folder)
    concurrent = concurrent_trials(plan)
    if plan.scheduler == "pbt" and plan.trials > concurrent:
        raise ConfigError(
            f"pbt trains its trials side by side: {plan.trials} of them do not fit into a cluster with room "
            f"for {concurrent}; give --trials {concurrent}, or fewer resources to each"
        )
    budget = Budget(plan, limits, record)
    view.show(record.trials())
    os.environ[_PENDING] = str(concurrent)  # Ray Tune starts one process after the other by default
    # Ray Train's workers are tried again by Ray Train; a process that was the worker itself is, by resuming.
    retries = plan.resources.max_failures if plan.resources.is_single else 0
    for left in reversed(range(1 + retries)):
        recorder = Recorder(plan, record, budget, view, is_tried_again=left > 0)
        proposals = Proposals(plan, record, concurrent, recorder.on_infeasible)
        decides = scheduler(plan)
        replay(decides, plan, record.trials())
        _run(
            plan,
            folder,
            trainable,
            search_alg=proposals,
            scheduler=decides,
            stop=budget,
            callbacks=[recorder],
        )
        unfinished = {each.number for each in record.trials() if each.state == "running"}
        if not recorder.lost or unfinished != recorder.lost or not proposals.is_finished():
            break
    return record.trials(), budget.reached


def concurrent_trials(plan: Plan) -> int:
    """Return how many trials train at a time; Ray must be connected."""
    return 1 if plan.is_timed else max(1, plan.resources.fits(ray.cluster_resources()))


def _run(plan: Plan, folder: UPath, trainable: Trainable, **options: Any) -> None:
    """Let Ray Tune try all that is proposed; `options` are those of `tune.run`."""
    scratch = folder / _SCRATCH
    remove(scratch)
    # A trial with workers of its own only waits: were it to ask for a core, they might never get theirs.
    waiting: dict[str, float] = {"memory": _TRIAL_MEMORY}
    taken = plan.resources.per_worker() if plan.resources.is_single else waiting
    try:
        with warnings.catch_warnings():
            # Ray advises population-based training to keep a trial's process, which is not always possible.
            warnings.simplefilter("ignore", UserWarning)
            # Not Ray's `Tuner`, which pickles everything to resume from that: the record is for that.
            tune.run(
                tune.with_resources(trainable, taken),
                name=folder.name,
                storage_path=str(scratch),
                # What waits for workers cannot be stopped without its process.
                reuse_actors=plan.resources.is_single,
                verbose=0,
                raise_on_failed_trial=False,
                **options,
            )
    finally:
        remove(scratch)


class Recorder(Callback):
    """Writes what Ray Tune hears of its trials into the record, and shows it.

    Args:
        plan: of the sweep.
        record: of its trials.
        budget: told when something was spent.
        view: shows the record.
        is_tried_again: whether a trial that was lost is not given up yet.
    """

    def __init__(
        self, plan: Plan, record: Record, budget: Budget, view: SweepView, *, is_tried_again: bool = False
    ) -> None:
        self._plan, self._record, self._budget, self._view = plan, record, budget, view
        self._is_tried_again = is_tried_again
        self.lost = set[int]()
        """Numbers of the trials whose process ended, or that met what another try may not meet."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has begun, or goes on."""
        self._view.show(self._record.trials())

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial was validated."""
        number = trial_number(trial.trial_id)
        if TAKEOVER in result:
            settings = {name: value for name, value in trial.config.items() if name != TOLD}
            self._record.take_over(number, Takeover(*result[TAKEOVER]), settings)
        metrics = {
            name: float(value)
            for name, value in result.items()
            if name.startswith("val_") and isinstance(value, int | float)
        }
        if self._plan.is_counted:
            settings = {name: trial.config[name] for name in self._plan.space}
            metrics |= counted(override(self._plan.config, settings).model)
        self._record.add(number, Result(int(result["epoch"]), metrics, float(result["time_this_iter_s"])))
        self._budget.add_up()
        self._view.show(self._record.trials(), validated=number)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has ended by itself, or was stopped."""
        self._record.end(trial_number(trial.trial_id))
        self._view.show(self._record.trials())

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has failed."""
        error = _cause(_error(trial))
        reason = _reason(error)
        if self._is_tried_again and not isinstance(error, LASTING):
            self.lost.add(trial_number(trial.trial_id))
            self._view.note(f"{trial.trial_id}: will be tried again: {reason}")
            return
        is_of_settings = isinstance(error, ConfigError | TrainingError)
        self._record.fail(trial_number(trial.trial_id), reason, is_of_settings=is_of_settings)
        self._view.show(self._record.trials(), failed=trial_number(trial.trial_id))

    def on_infeasible(self, trial: TrialRecord) -> None:
        """A proposal was refused before it was begun."""
        self._view.show(self._record.trials(), failed=trial.number)


def _error(trial: Trial) -> BaseException | None:
    """What a trial failed of; `Trial.get_pickled_error` would look where it is copied to later."""
    written = trial.pickled_error_file
    return cloudpickle.loads(Path(written).read_bytes()) if written else None


def _cause(error: BaseException | None) -> BaseException | None:
    """The library's own error behind what Ray made of it."""
    # Ray's own error passes for an instance of what it carries, but its text is a traceback.
    while (behind := getattr(error, "cause", None) or getattr(error, "__cause__", None)) is not None:
        if isinstance(error, MSTError) and not isinstance(error, RayTaskError):
            break
        error = behind
    return error


def _reason(error: BaseException | None) -> str:
    """What a trial failed of, in a line."""
    if isinstance(error, RayActorError):
        return "its process died; was the machine out of memory?"
    lines = str(error or "").strip().splitlines()
    return lines[-1] if lines else f"{type(error).__name__}, see Ray's logs"

"""What a sweep has tried and what came of it: an Optuna study in a journal in the sweep's folder.

Each line of the journal is written before what follows from it, and a line that a killed process cut short is
removed: nothing else is needed to go on. It holds plain JSON, no pickles.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import LOCK_FILE_SUFFIX
from optuna.trial import FrozenTrial, TrialState
from upath import UPath

from mst.errors import ConfigError
from pipelines.sweeping.plan import Objective, Plan
from pipelines.sweeping.space import Settings, Space, distributions, grid, params_of, settings_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

State = Literal["running", "finished", "stopped", "failed"]

_JOURNAL, _LOCK = "trials.journal", ".lock"
_VALIDATION, _TAKEOVER, _FAILURE = "validation ", "takeover ", "failure"
_MOST_RANDOM = 10  # trials before TPE has a model


class Takeover(NamedTuple):
    """A trial that goes on from the weights of another one (population-based training)."""

    other: str
    """The other one's name."""
    epoch: int
    """Epochs behind those weights."""
    time: float
    """When, in seconds since 1970: one trial can take over from another more than once."""


class Result(NamedTuple):
    """A validation of a trial."""

    epoch: int
    """Epochs behind it."""
    metrics: dict[str, float]
    seconds: float
    """Since the validation before, or the start."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a sweep."""

    number: int
    settings: Settings
    """The last, where they changed on the way."""
    state: State
    """Running also means interrupted; stopped is before its last epoch, by the scheduler or its patience."""
    results: tuple[Result, ...] = ()
    """By epoch; those from beyond the weights that it took over, if it did, are not its own any more."""
    takeovers: tuple[Takeover, ...] = ()
    failure: str | None = None
    validations: int = 0
    """All that it ever had."""
    seconds: float = 0.0
    """That all of them took."""

    @property
    def name(self) -> str:
        """Of its folder and its run."""
        return trial_name(self.number)

    @property
    def epochs(self) -> int:
        """Behind its last validation."""
        return self.results[-1].epoch if self.results else 0

    def best(self, objective: Objective) -> Result:
        """Return its best validation; it must have one."""
        ordered = sorted(self.results, key=lambda each: each.metrics[objective.metric])
        return ordered[-1] if objective.mode == "max" else ordered[0]


def trial_name(number: int) -> str:
    """Return the name of a trial's folder and run."""
    return f"trial_{number:03d}"


def trial_number(name: str) -> int:
    """Return the number of the trial of this name."""
    return int(name.rpartition("_")[2])


class Record:
    """The journal of a sweep, and what proposes its next trial from it.

    Args:
        plan: of the sweep.
        folder: of the sweep, on a local or mounted disk.
    """

    def __init__(self, plan: Plan, folder: UPath) -> None:
        path = str(folder / _JOURNAL)
        is_new = not (folder / _JOURNAL).exists()
        _mend(Path(path))
        storage = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [up if each.mode == "max" else down for each in plan.all_objectives()]
        self._study = optuna.create_study(
            storage=storage, study_name=folder.name, directions=directions, load_if_exists=True
        )
        self._study.sampler = _sampler(plan, drawn=len(self._study.trials))
        self._plan = plan
        self._drawn: dict[str, BaseDistribution] = distributions(plan.space)
        self._handles: dict[int, optuna.Trial] = {}
        if is_new and plan.search == "grid":
            for point in grid(plan.space)[: plan.trials]:
                for _ in range(plan.seeds):
                    self._study.enqueue_trial(params_of(plan.space, point))

    def propose(self) -> tuple[int, Settings]:
        """Begin another trial; return its number and settings, those of the one before for another seed."""
        begun = self._study.get_trials(deepcopy=False)
        if len(begun) % self._plan.seeds and begun[-1].state != TrialState.WAITING:
            self._study.enqueue_trial(begun[-1].params)
        trial = self._study.ask(fixed_distributions=self._drawn)
        self._handles[trial.number] = trial
        return trial.number, settings_of(self._plan.space, trial.params)

    def add(self, number: int, result: Result) -> None:
        """Add a validation of a trial; one of an epoch that is there already changes nothing."""
        mine, trial = self.trial(number), self._handle(number)
        if result.epoch in [each.epoch for each in mine.results]:
            return
        trial.set_user_attr(f"{_VALIDATION}{_next(trial)}", result)
        if len(self._plan.objectives) == 1 and not mine.takeovers:  # Optuna knows of no steps of others
            trial.report(result.metrics[self._plan.primary.metric], result.epoch)

    def take_over(self, number: int, takeover: Takeover, settings: Settings) -> None:
        """Note that a trial goes on from another one's weights with other settings; twice changes nothing."""
        trial = self._handle(number)
        if takeover not in self.trial(number).takeovers:
            trial.set_user_attr(f"{_TAKEOVER}{_next(trial)}", [takeover, settings])

    def end(self, number: int) -> None:
        """End a trial: finished with its last epoch, stopped before."""
        mine = self.trial(number)
        if mine.epochs < self._plan.epochs:
            self._study.tell(number, state=TrialState.PRUNED)
            return
        best = mine.best(self._plan.primary)
        self._study.tell(number, [best.metrics[each.metric] for each in self._plan.all_objectives()])

    def fail(self, number: int, reason: str, *, is_of_settings: bool) -> None:
        """End a trial that could not be trained.

        Args:
            number: of the trial.
            reason: in a line.
            is_of_settings: whether its settings are why, so that the search avoids the like of them.
        """
        trial = self._handle(number)
        trial.set_user_attr(_FAILURE, reason)
        if is_of_settings:
            trial.set_constraint("infeasible", 1.0)
        self._study.tell(number, state=TrialState.PRUNED if is_of_settings else TrialState.FAIL)

    def trials(self) -> list[TrialRecord]:
        """Return all trials that have begun, in their order."""
        begun = self._study.get_trials(deepcopy=False)
        return [_record(each, self._plan.space) for each in begun if each.state != TrialState.WAITING]

    def trial(self, number: int) -> TrialRecord:
        """Return one of them."""
        return _record(self._study.get_trials(deepcopy=False)[number], self._plan.space)

    def _handle(self, number: int) -> optuna.Trial:
        if number not in self._handles:  # begun by a process before this one
            frozen = self._study.get_trials(deepcopy=False)[number]
            self._handles[number] = optuna.Trial(self._study, frozen._trial_id)
        return self._handles[number]


@contextmanager
def alone(folder: UPath) -> Iterator[None]:
    """Keep other processes out of a sweep as long as the block runs; a killed one holds up nobody.

    Raises:
        ConfigError: another process is at it.
    """
    with Path(str(folder), _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process works on the sweep in {folder}") from None
        yield


def _mend(journal: Path) -> None:
    """Remove what a killed process left: the beginning of a line, and the lock that it wrote under."""
    if not journal.exists():
        return
    journal.with_name(f"{journal.name}{LOCK_FILE_SUFFIX}").unlink(missing_ok=True)
    with journal.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def rank(trials: Sequence[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """Return the trials that have a validation, best first."""
    known = [each for each in trials if each.results]
    return sorted(
        known,
        key=lambda each: each.best(objective).metrics[objective.metric],
        reverse=objective.mode == "max",
    )


def pareto_set(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return the trials that no other one beats in one objective without being worse in another.

    Each counts with its best validation by the first objective.
    """

    def figures(trial: TrialRecord) -> list[float]:
        metrics = trial.best(objectives[0]).metrics
        return [metrics[each.metric] * (-1 if each.mode == "max" else 1) for each in objectives]

    known = [(each, figures(each)) for each in rank(trials, objectives[0])]
    return [
        each
        for each, mine in known
        if not any(
            theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True)) for _, theirs in known
        )
    ]


def _record(trial: FrozenTrial, space: Space) -> TrialRecord:
    settings, results = settings_of(space, trial.params), list[Result]()
    takeovers, seconds = list[Takeover](), 0.0
    events = {int(name.rpartition(" ")[2]): name for name in trial.user_attrs if name != _FAILURE}
    for _, name in sorted(events.items()):
        noted: Any = trial.user_attrs[name]
        if name.startswith(_VALIDATION):
            results.append(Result(*noted))
            seconds += results[-1].seconds
        else:
            takeovers.append(Takeover(*noted[0]))
            settings = noted[1]
            results = [each for each in results if each.epoch <= takeovers[-1].epoch]
    states: dict[TrialState, State] = {
        TrialState.RUNNING: "running",
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "failed" if _FAILURE in trial.user_attrs else "stopped",
        TrialState.FAIL: "failed",
    }
    return TrialRecord(
        trial.number,
        settings,
        states[trial.state],
        tuple(sorted(results)),
        tuple(takeovers),
        trial.user_attrs.get(_FAILURE),
        validations=len(events) - len(takeovers),
        seconds=seconds,
    )


def _next(trial: optuna.Trial) -> int:
    """The number of a trial's next event."""
    return len(trial.user_attrs)


def _sampler(plan: Plan, drawn: int) -> BaseSampler:
    """What draws the next point; `drawn` points are there, which a sweep that goes on must not draw again."""
    seed = plan.config.seed + drawn
    if plan.search == "tpe" and plan.scheduler != "pbt":
        return TPESampler(
            seed=seed, n_startup_trials=plan.seeds * min(_MOST_RANDOM, max(3, plan.trials // 4))
        )
    return RandomSampler(seed=seed)

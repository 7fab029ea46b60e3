"""Proposes what to try next, to Ray Tune."""

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search import SearchAlgorithm

from pipelines.sweeping.plan import Plan
from pipelines.sweeping.record import Record, TrialRecord, trial_name
from pipelines.sweeping.space import infeasible

TOLD = "epochs told"
"""Of a proposal: validations up to this epoch are in the record."""


class Proposals(SearchAlgorithm):  # type: ignore[misc]  # Ray has no types
    """Gives Ray Tune the trials of a sweep: first those that were interrupted, then new ones.

    It is no `Searcher` of Ray's, as which it could not be combined with population-based training, and would
    be resumed from a pickle. Proposals that the config cannot take fail here, before any process is started.

    Args:
        plan: of the sweep.
        record: of its trials, which are begun in it.
        concurrent: how many may run at a time.
        on_infeasible: told of a proposal that the config cannot take.
    """

    def __init__(
        self, plan: Plan, record: Record, concurrent: int, on_infeasible: Callable[[TrialRecord], None]
    ) -> None:
        self._plan, self._record, self._concurrent = plan, record, concurrent
        self._on_infeasible = on_infeasible
        begun = record.trials()
        self._interrupted = [each for each in begun if each.state == "running"]
        self._begun = len(begun)
        self._active: set[str] = set()
        self._spec: dict[str, Any] = {}

    @property
    def total_samples(self) -> int:
        """Trials of the whole sweep."""
        return self._plan.runs

    def add_configurations(self, experiments: Any) -> None:
        """Take what is common to all trials."""
        self._spec = experiments[0].spec

    def next_trial(self) -> Trial | None:
        """Return the next trial if there is room for one."""
        if len(self._active) >= self._concurrent:
            return None
        if self._interrupted:
            again = self._interrupted.pop(0)
            return self._trial(again.number, {**again.settings, TOLD: again.epochs})
        while not self.is_finished():
            number, settings = self._record.propose()
            self._begun += 1
            reason = infeasible(self._plan.config, settings)
            if reason is None:
                return self._trial(number, {**settings, TOLD: 0})
            self._record.fail(number, reason, is_of_settings=True)
            self._on_infeasible(TrialRecord(number, settings, "failed", failure=reason))
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Make room for another trial."""
        self._active.discard(trial_id)

    def is_finished(self) -> bool:
        """Whether there is nothing left to propose."""
        nothing_left = not self._interrupted and self._begun >= self._plan.runs
        return bool(self._finished) or nothing_left

    def _trial(self, number: int, proposal: dict[str, Any]) -> Trial:
        name = trial_name(number)
        self._active.add(name)
        return _create_trial_from_spec(
            {**self._spec, "config": proposal},
            _make_parser(),
            evaluated_params=proposal,
            experiment_tag=name,
            trial_id=name,
        )

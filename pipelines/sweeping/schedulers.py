"""What stops trials that fall behind, or lets them take over the weights of better ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from pipelines.sweeping.plan import Plan
from pipelines.sweeping.record import TrialRecord
from pipelines.sweeping.space import clipped, mutations

_HALVING = 2  # of the trials that reach a rung, one in so many goes on
_TIME = "epoch"


def scheduler(plan: Plan) -> TrialScheduler:
    """Return the scheduler of a plan."""
    compared: dict[str, Any] = {"time_attr": _TIME, "metric": plan.primary.metric, "mode": plan.primary.mode}
    if plan.scheduler == "asha":
        # Up to the last epoch but one: who gets there also ends by itself.
        last = max(plan.grace_epochs, plan.epochs - 1)
        return ASHAScheduler(
            **compared,
            max_t=last,
            grace_period=plan.grace_epochs,
            reduction_factor=_HALVING,
            stop_last_trials=False,
        )
    if plan.scheduler == "median":
        return MedianStoppingRule(**compared, grace_period=plan.grace_epochs)
    if plan.scheduler == "pbt":
        return _population(plan, compared)
    return FIFOScheduler()


def _population(plan: Plan, compared: dict[str, Any]) -> TrialScheduler:
    return PopulationBasedTraining(
        **compared,
        perturbation_interval=plan.grace_epochs,
        hyperparam_mutations=mutations(plan.space),
        custom_explore_fn=lambda settings: clipped(plan.space, settings),
        log_config=False,
    )


class _Former(NamedTuple):
    """A trial of before, as far as schedulers look at one."""

    trial_id: str


def replay(to: Any, plan: Plan, trials: Sequence[TrialRecord]) -> None:
    """Show a scheduler the results of a sweep that is resumed: new trials have to compare with them."""
    if plan.scheduler not in ("asha", "median"):
        return
    for trial in trials:
        former = _Former(trial.name)
        for result in trial.results:
            to.on_trial_add(None, former)
            to.on_trial_complete(None, former, {**result.metrics, _TIME: result.epoch})

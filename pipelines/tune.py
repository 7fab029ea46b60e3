"""Sweep an experiment over a search space, and find the best.

    python pipelines/tune.py --recipe demo --space smoke --trials 8 --name my_sweep
    python pipelines/tune.py --resume my_sweep
    python pipelines/tune.py --recipe demo --space tokens --trials 30 --name speed \\
        --objectives noc90 ms_per_click --scheduler none

Every trial is a training of its own (`pipelines.train.train_driver`) with its own MLflow run inside the
sweep's. What came of them is printed, and written to `STORAGE/NAME/sweep.json`, `sweep.html` and `sweep.png`.
"""

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from upath import UPath

import tune_spaces
from mst.command_line import count, given, parse, run
from mst.config import Config
from mst.data.files import as_path
from mst.errors import ConfigError
from mst.overrides import override
from mst.training.checkpoints import best
from pipelines.cluster import connect
from pipelines.command_line import add_resources, add_settings, config_of, resources_of
from pipelines.evaluation.tables import show_evaluations
from pipelines.registry.versions import registry_client, snapshot
from pipelines.storage import absolute, absolute_paths
from pipelines.sweeping.budget import Limits
from pipelines.sweeping.page import write_page
from pipelines.sweeping.plan import OBJECTIVES, SCHEDULERS, SEARCHES, Plan, keep, planned, read
from pipelines.sweeping.points import Point, points
from pipelines.sweeping.record import TrialRecord, alone, pareto_set, rank
from pipelines.sweeping.space import Space, check_space, grid
from pipelines.sweeping.sweep import concurrent_trials, sweep
from pipelines.sweeping.table import SweepView, console, points_table, trials_table
from pipelines.sweeping.winner import as_it_is, check_held_out, measure, offer, train_on
from pipelines.training.driver import check_request
from pipelines.training.progress import shown
from pipelines.training.tracking import TrackedRun, find_run, open_run, tracking_uri

_LIMITS, _WINNER = ("max_hours", "max_samples", "max_gpu_hours"), ("final_epochs", "test", "promote")
_ANEW = ("resume", "storage", "trials", *_LIMITS, *_WINNER)
"""Options that go with `--resume`."""


def read_space(name: str, config: Config, given_settings: Collection[str] = ()) -> tuple[Space, Config]:
    """Return the space of `tune_spaces/NAME.py`, and the config with what all trials in it have.

    Args:
        name: of the space.
        config: to be varied.
        given_settings: names of those that the user chose, which stay as they are.

    Raises:
        ConfigError: no such space, or this config cannot be varied in it.
    """
    known = [module.name for module in pkgutil.iter_modules(tune_spaces.__path__)]
    if name not in known:
        raise ConfigError(f"unknown search space '{name}'; known are {', '.join(known)}")
    module = importlib.import_module(f"tune_spaces.{name}")
    base = getattr(module, "BASE", {})
    config = override(config, {key: value for key, value in base.items() if key not in given_settings})
    space: Space = module.SPACE
    check_space(space, config)
    return space, config


def plan_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace, folder: UPath) -> Plan:
    """Return what the command line asks for: a new plan, or that of a sweep to resume.

    Raises:
        ConfigError: the plan cannot be carried out, or the folder is not as it has to be.
    """
    if arguments.resume:
        for name, value in vars(arguments).items():
            if name not in _ANEW and value != parser.get_default(name):
                option = name.replace("_", "-") if "." not in name else name
                raise ConfigError(
                    f"a sweep goes on as it began: leave --{option} away, or begin another by --name"
                )
        plan = read(folder)
        return replace(plan, trials=arguments.trials or plan.trials)
    if not arguments.recipe or not arguments.name:
        raise ConfigError("give --recipe and --name for a new sweep, or --resume NAME")
    if folder.exists():
        raise ConfigError(
            f"{folder} is there already; go on by --resume {folder.name}, or give another --name"
        )
    config = absolute_paths(config_of(arguments))
    space, config = read_space(arguments.space or "smoke", config, given(arguments))
    is_grid = arguments.search == "grid"
    trials = min(arguments.trials or sys.maxsize, len(grid(space))) if is_grid else arguments.trials or 8
    compares_more = len(arguments.objectives or ()) > 1 or arguments.seeds > 1
    return planned(
        config,
        space,
        trials,
        objectives=arguments.objectives,
        search=arguments.search or "tpe",
        scheduler=arguments.scheduler or ("none" if compares_more else "asha"),
        grace_epochs=arguments.grace_epochs,
        seeds=arguments.seeds,
        resources=resources_of(arguments),
    )


def parent_of(plan: Plan, folder: UPath, uri: str) -> TrackedRun:
    """Return the sweep's MLflow run: that which it had before it was resumed, or a new one."""
    found = find_run(uri, folder)
    if found:
        found.go_on(plan.config, 0, [])
        return found
    return open_run(uri, folder, plan.config)


def write_results(
    plan: Plan, trials: Sequence[TrialRecord], found: Sequence[Point], folder: UPath, parent: TrackedRun
) -> None:
    """Write the sweep's trials and points into its folder, and log them."""
    ranked, objectives = rank(trials, plan.primary), plan.all_objectives()
    unranked = [each for each in trials if each not in ranked]
    results = {
        "objectives": list(plan.objectives),
        "pareto_set": [each.name for each in pareto_set(trials, objectives)],
        "points": [_point(each) for each in found] if plan.seeds > 1 else [],
        "trials": [_described(plan, each, folder) for each in [*ranked, *unranked]],
    }
    out = folder / "sweep.json"
    out.write_text(json.dumps(results, indent=2))
    metrics = ranked[0].best(plan.primary).metrics
    parent.log({f"best_{name}": value for name, value in metrics.items()}, len(trials))
    for file in (
        out,
        folder / "plan.json",
        *write_page(plan, trials, folder, found if plan.seeds > 1 else ()),
    ):
        parent.client().log_artifact(parent.run_id, str(file))


def _described(plan: Plan, trial: TrialRecord, folder: UPath) -> dict[str, Any]:
    about = {**asdict(trial), "name": trial.name, "epochs": trial.epochs}
    del about["results"]
    if not trial.results:
        return about
    metrics = trial.best(plan.primary).metrics
    return {**about, "checkpoint": str(best(folder / trial.name).path), "metrics": metrics}


def _point(point: Point) -> dict[str, Any]:
    return {
        "settings": point.trials[0].settings,
        "trials": [each.name for each in point.trials],
        "values": point.values,
        "mean": point.mean,
        "interval": point.interval and [point.interval.low, point.interval.high],
    }


def show_trials(plan: Plan, trials: Sequence[TrialRecord], found: Sequence[Point], screen: Console) -> None:
    """Print all trials, best first, the points that they are of, and those that no other one beats."""
    ranked = rank(trials, plan.primary)
    screen.print(trials_table(plan, [*ranked, *(each for each in trials if each not in ranked)], trials))
    if plan.seeds > 1:
        screen.print(points_table(plan, found))
    if len(plan.objectives) > 1:
        front = pareto_set(trials, plan.all_objectives())
        screen.print(f"Pareto set: {', '.join(each.name for each in front)}", highlight=False)


def finish(
    arguments: argparse.Namespace, plan: Plan, winner: TrialRecord, folder: UPath, parent: TrackedRun
) -> None:
    """Train the winner on, test it and offer it, as far as the command line asks for it."""
    if not (arguments.final_epochs or arguments.test or arguments.promote):
        return
    if arguments.final_epochs:
        with shown(f"{winner.name}_full") as board:
            trained = train_on(plan, winner, folder, parent, arguments.final_epochs, board)
    else:
        trained = as_it_is(winner, folder, parent)
    print(f"winner: {trained.checkpoint}")
    if arguments.test:
        for found in measure(trained, arguments.test, folder, plan.resources):
            show_evaluations([found])
    if arguments.promote:
        print(f"offered to the registry: {offer(trained, arguments.test or (), plan.resources)}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options to a parser."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", help="name of a new sweep")
    which.add_argument("--resume", metavar="NAME", help="go on with a sweep; what has ended stays")
    parser.add_argument("--storage", default="runs", help="folder of all runs, local or mounted")
    parser.add_argument("--space", help="module of tune_spaces/ (default smoke)")
    parser.add_argument(
        "--trials", type=count, help="number of trials (default 8; of a grid, all its points)"
    )
    parser.add_argument("--search", choices=SEARCHES, help="proposes settings (default tpe)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="stops trials (default asha)")
    parser.add_argument("--grace-epochs", type=count, default=1, help="epochs that every trial gets")
    parser.add_argument(
        "--objectives",
        nargs="+",
        metavar="FIGURE",
        help=f"of {', '.join(OBJECTIVES)}; the first chooses checkpoints (default: train.choose_by)",
    )
    limits = parser.add_argument_group("limits", "end the sweep; it can be resumed")
    limits.add_argument("--max-hours", type=float, help="hours until this command ends")
    limits.add_argument("--max-samples", type=count, help="samples that all trials train on together")
    limits.add_argument("--max-gpu-hours", type=float, help="GPU hours of all trials together")
    parser.add_argument(
        "--seeds", type=count, default=1, help="trainings of each point; points are ranked by their means"
    )
    winner = parser.add_argument_group("winner", "what becomes of the best trial")
    winner.add_argument("--final-epochs", type=count, help="train it on to so many epochs in all")
    winner.add_argument("--test", nargs="+", metavar="SOURCE", help="evaluate it on held-out data")
    winner.add_argument("--promote", action="store_true", help="offer it to the registry")
    add_resources(parser)
    add_settings(parser, required=False)


def carry_out(arguments: argparse.Namespace, plan: Plan, folder: UPath, parent: TrackedRun) -> None:
    """Run the sweep, show what came of it, and go on with the winner.

    Raises:
        MSTError: no trial was ever validated.
        KeyboardInterrupt: the user has interrupted the sweep.
    """
    limits = Limits(arguments.max_hours, arguments.max_samples, arguments.max_gpu_hours)
    screen = console()
    view = SweepView(plan, screen, concurrent_trials(plan))
    with view.shown():
        trials, reached = sweep(plan, folder, parent, limits, view)
    found = points(plan, trials, folder)
    if found:
        write_results(plan, trials, found, folder, parent)
        show_trials(plan, trials, found, screen)
        print(f"page: {folder / 'sweep.html'}   all trials: {folder / 'sweep.json'}")
    if reached:
        print(f"ended by its limit of {reached}; go on by --resume {folder.name}")
    elif len(trials) < plan.runs or any(each.state == "running" for each in trials):
        print(f"go on by --resume {folder.name}")
        raise KeyboardInterrupt  # which Ray Tune has caught, to stop its trials
    if found:
        finish(arguments, plan, found[0].trials[0], folder, parent)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Sweep an experiment over a search space.", allow_abbrev=False, usage="%(prog)s [options]"
    )
    add_options(parser)
    arguments = parse(parser, None)
    folder = as_path(absolute(arguments.storage)) / (arguments.resume or arguments.name)
    plan = plan_of(parser, arguments, folder)
    check_held_out(plan, arguments.test or ())
    uri = tracking_uri()
    if arguments.promote and not arguments.test and snapshot(registry_client(uri)).champion is None:
        raise ConfigError("there is no champion yet: --promote needs --test, held-out data to judge by")
    connect()
    check_request(plan.config, folder, plan.resources)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        keep(plan, folder)
        parent = parent_of(plan, folder, uri)
        try:
            carry_out(arguments, plan, folder, parent)
        except BaseException as error:
            parent.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        parent.finish("FINISHED")


if __name__ == "__main__":
    run(main)

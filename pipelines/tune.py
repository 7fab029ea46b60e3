"""Sweep an experiment over a search space: Optuna proposes, ASHA stops the trials that fall behind.

    python pipelines/tune.py --recipe demo --space tokens_and_losses --trials 8 --name my_sweep

Every trial is a training of its own (`pipelines.train.train_driver`) with its own MLflow run inside the
sweep's. What won is printed and written to `STORAGE/NAME/sweep.json`.
"""

import argparse
import importlib
import json
import pkgutil
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from upath import UPath

import tune_spaces
from mst.command_line import count, parse, run
from mst.config import Config
from mst.errors import ConfigError, MSTError
from mst.overrides import override
from mst.training.checkpoints import best
from pipelines.cluster import Resources, connect
from pipelines.command_line import add_settings, config_of
from pipelines.storage import absolute, absolute_paths
from pipelines.tracking import TrackedRun, close_children, open_run, tracking_uri
from pipelines.train import add_resources, check_request, resources_of, train_driver

METRIC = "val_score"

_TRIAL_MEMORY = 2**20  # bytes; Ray Tune refuses a trial that asks for nothing

Space = dict[str, tuple[str, ...]]


def read_space(name: str, config: Config) -> Space:
    """Return the space of `tune_spaces/NAME.py`.

    Raises:
        ConfigError: no such space, or a setting or value of it that this config cannot take.
    """
    known = [module.name for module in pkgutil.iter_modules(tune_spaces.__path__)]
    if name not in known:
        raise ConfigError(f"unknown search space '{name}'; known are {', '.join(known)}")
    space: Space = importlib.import_module(f"tune_spaces.{name}").SPACE
    for setting, values in space.items():
        for value in values:
            override(config, {setting: value})
    return space


def sweep(
    config: Config,
    space: Space,
    folder: UPath,
    resources: Resources,
    *,
    uri: str,
    trials: int,
    grace_epochs: int,
) -> list[dict[str, Any]]:
    """Train `trials` variants of a config and rank them.

    Args:
        config: that the trials vary; its paths absolute.
        space: the settings that are tried.
        folder: of the sweep; a trial's run is stored in it.
        resources: of each trial.
        uri: of the MLflow server.
        trials: how many.
        grace_epochs: that each trial gets before it can be stopped.

    Returns:
        For each trial that validated at least once, best first: `trial`, its `settings`, its best
        `checkpoint`, that one's `metrics` and the number of `epochs` it was given.
    """
    parent = open_run(uri, folder, config)
    there = ray.cluster_resources()
    wanted = {kind: number for kind, number in resources.wanted().items() if number}
    concurrent = min(int(there.get(kind, 0) // number) for kind, number in wanted.items())
    tuner = Tuner(
        # A trial only waits for its workers: were it to ask for a core, they might never get theirs.
        tune.with_resources(
            tune.with_parameters(run_trial, base=config, folder=folder, workers=resources, parent=parent),
            {"memory": _TRIAL_MEMORY},
        ),
        param_space={setting: tune.choice(values) for setting, values in space.items()},
        tune_config=TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=trials,
            max_concurrent_trials=concurrent,
            search_alg=OptunaSearch(seed=config.seed),
            scheduler=_scheduler(grace_epochs, config.train.epochs),
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            callbacks=[Lines(config.train.epochs)],
            verbose=0,
        ),
    )
    grid = tuner.fit()
    results = [grid[number] for number in range(len(grid))]
    in_order = {str(result.metrics["trial_id"]) for result in results if result.metrics and not result.error}
    close_children(parent, stopped=in_order)
    ranking = [
        _ranked(folder / str(result.metrics["trial_id"]), result.config or {}, result.metrics)
        for result in results
        if result.metrics and METRIC in result.metrics
    ]
    ranking.sort(key=lambda each: each["metrics"][METRIC], reverse=True)
    if not ranking:
        parent.finish("FAILED")
        reason = str(results[0].error).strip().splitlines()[-1]  # of the traceback on the trial's side
        raise MSTError(f"all {trials} trials failed; the first: {reason}")
    parent.log({f"best_{name}": value for name, value in ranking[0]["metrics"].items()}, 0)
    parent.finish("FINISHED")
    return ranking


def _scheduler(grace_epochs: int, epochs: int) -> ASHAScheduler:
    """ASHA that compares trials up to their last epoch but one: who gets there also ends by itself."""
    last = max(grace_epochs, epochs - 1)
    return ASHAScheduler(
        time_attr="epoch", max_t=last, grace_period=grace_epochs, reduction_factor=2, stop_last_trials=False
    )


class Lines(Callback):
    """Prints a line for each validation of a trial, and for each failure.

    Args:
        epochs: of each trial.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Say how good a trial is by now."""
        epoch, settings = int(result["epoch"]), _short(trial.config)
        figures = f"IoU {result['val_iou']:.3f}  NoC@85 {result['val_noc85']:.2f}"
        print(f"trial {trial.trial_id}: epoch {epoch}/{self._epochs}  {figures}  {settings}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say that a trial failed."""
        print(f"trial {trial.trial_id}: failed, see {trial.error_file}  {_short(trial.config)}", flush=True)


def _short(settings: dict[str, str]) -> str:
    return " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items())


def run_trial(
    settings: dict[str, str], base: Config, folder: UPath, workers: Resources, parent: TrackedRun
) -> None:
    """Train one variant; Ray Tune calls it in a process of its own."""
    trial = tune.get_context().get_trial_id()
    train_driver(
        override(base, settings),
        folder / trial,
        workers,
        uri=parent.uri,
        callbacks=[TuneReportCallback()],
        parent=parent.run_id,
    )


def _ranked(folder: UPath, settings: dict[str, str], last: dict[str, Any]) -> dict[str, Any]:
    checkpoint = best(folder)
    return {
        "trial": folder.name,
        "settings": settings,
        "epochs": int(last["epoch"]),
        "checkpoint": str(checkpoint.path),
        "metrics": checkpoint.metrics,
    }


def show(ranking: list[dict[str, Any]], epochs: int) -> None:
    """Print the trials, best first."""
    table = Table(title="Trials, best first", box=SIMPLE_HEAD)
    for column in (*ranking[0]["settings"], "epochs", "IoU", "NoC@85"):
        table.add_column(column.rpartition(".")[2], justify="right", overflow="fold")
    for each in ranking:
        metrics = each["metrics"]
        figures = (f"{metrics['val_iou']:.3f}", f"{metrics['val_noc85']:.2f}")
        table.add_row(*each["settings"].values(), f"{each['epochs']}/{epochs}", *figures)
    Console().print(table)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Sweep an experiment over a search space.", allow_abbrev=False, usage="%(prog)s [options]"
    )
    parser.add_argument("--name", required=True, help="of the sweep")
    parser.add_argument("--space", default="tokens_and_losses", help="module of tune_spaces/")
    parser.add_argument("--trials", type=count, default=8, help="number of trials")
    parser.add_argument("--grace-epochs", type=count, default=1, help="epochs that every trial gets")
    parser.add_argument("--storage", default="runs", help="folder of all runs")
    add_resources(parser)
    add_settings(parser)
    arguments = parse(parser, None)
    config = absolute_paths(config_of(arguments))
    folder = UPath(absolute(arguments.storage)) / arguments.name
    if folder.exists():
        raise ConfigError(f"{folder} is there already; give this sweep another --name")
    space = read_space(arguments.space, config)
    resources = resources_of(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    connect()
    check_request(config, folder, resources)
    ranking = sweep(
        config,
        space,
        folder,
        resources,
        uri=tracking_uri(),
        trials=arguments.trials,
        grace_epochs=arguments.grace_epochs,
    )
    show(ranking, config.train.epochs)
    out = folder / "sweep.json"
    out.write_text(json.dumps(ranking, indent=2))
    print(f"best checkpoint {ranking[0]['checkpoint']}; all trials in {out}")


if __name__ == "__main__":
    run(main)

"""Train in this one process, without Ray: for debugging, and for machines that have no Ray.

    python -m pipelines.recipes real_small > small.json
    python -m mst.training small.json --out runs/small --data.root ../shared/data

The loop and the checkpoints are those of `pipelines/train.py`; the curves go to `metrics.jsonl`.
"""

import argparse
import json
import logging
from pathlib import Path

import torch

from mst.command_line import add_options, given, parse, run
from mst.config import Config
from mst.data.files import as_path
from mst.data.sampling.sampler import Shard
from mst.errors import ConfigError
from mst.overrides import from_dict, override
from mst.training import EpochReport, fit
from mst.training.checkpoints import best, remove_unfinished, save_report
from mst.training.resume import check_run, read_data, start


def train(config: Config, folder: Path, device: torch.device, *, allow_change: bool = False) -> None:
    """Train an experiment, or go on with it, until it is finished.

    Args:
        config: of the experiment.
        folder: of the run: for checkpoints and curves.
        device: to train on.
        allow_change: whether the run may go on with other settings than it began with.

    Raises:
        MSTError: as `check_run`, `start`, `read_data` and `fit` say.
    """
    place = as_path(folder)
    found, changed = check_run(place, config, allow_change=allow_change)
    if found and found.is_finished and not changed:
        raise ConfigError(f"run '{folder.name}' is finished: {found.path}; give this one another --out")
    remove_unfinished(place)
    training_set, validation = read_data(config)
    state, origin = start(config, found.path if found else None, device)
    print(f"{training_set}; {len(validation)} validation objects; weights: {origin}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as curves:
        for report in fit(config, state, training_set, validation, Shard()):
            is_epoch = isinstance(report, EpochReport)
            if report.is_checkpoint:
                save_report(place, state, config, report)
            if is_epoch or (state.step - 1) % config.train.log_every == 0:
                _log(curves, state.step, config.train.steps, report.metrics)
    print(f"best checkpoint {best(place).path}")


def _log(curves: object, step: int, steps: int, metrics: dict[str, float]) -> None:
    """Write a line of figures to the terminal and to the file of curves."""
    figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    print(f"step {step}/{steps}  {figures}", flush=True)
    print(json.dumps({"step": step, **metrics}), file=curves, flush=True)  # type: ignore[call-overload]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mst.training",
        description="Train in this process, without Ray.",
        allow_abbrev=False,
        usage="%(prog)s CONFIG --out FOLDER [options]",
    )
    parser.add_argument(
        "config", type=Path, help="settings as JSON: a checkpoint's config.json, or a recipe's"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the same one goes on")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"to train on (default {device})")
    parser.add_argument(
        "--allow-config-change", action="store_true", help="go on with a run under other settings"
    )
    add_options(parser)
    arguments = parse(parser, None)
    try:
        config = from_dict(json.loads(arguments.config.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{arguments.config}: no settings in JSON ({error})") from None
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    train(
        override(config, given(arguments)),
        arguments.out,
        torch.device(arguments.device),
        allow_change=arguments.allow_config_change,
    )


if __name__ == "__main__":
    run(main)

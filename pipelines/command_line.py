"""Command lines that train: a recipe, settings that change it, and what it runs on."""

import argparse

from mst.command_line import add_options, count, given
from mst.config import Config
from mst.overrides import override
from pipelines.cluster import Resources
from pipelines.recipes import RECIPES, build, summary


def add_settings(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--recipe`, which may be required, and an option for each setting, to a parser."""
    recipes = "; ".join(f"{name}: {summary(name)}" for name in RECIPES)
    parser.add_argument("--recipe", required=required, metavar="NAME", help=recipes)
    add_options(parser)


def config_of(arguments: argparse.Namespace) -> Config:
    """Return the recipe that was asked for with the settings that were given.

    Raises:
        ConfigError: no such recipe, or a wrong value.
    """
    return override(build(arguments.recipe), given(arguments))


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options that `resources_of` reads to a parser."""
    parser.add_argument("--num-workers", type=count, default=1, help="Ray workers that share each batch")
    parser.add_argument(
        "--min-workers", type=count, default=None, help="fewest workers to go on with when nodes are lost"
    )
    parser.add_argument("--cpus-per-worker", type=count, default=1, help="cores for each worker")
    parser.add_argument("--use-gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument(
        "--gpus-per-worker", type=float, default=1, help="with --use-gpu, e.g. 0.5 for two trials on a GPU"
    )
    parser.add_argument(
        "--max-failures", type=int, default=3, help="failures of workers until a run is given up"
    )


def resources_of(arguments: argparse.Namespace) -> Resources:
    """Return what the command line asks for."""
    return Resources(
        arguments.num_workers,
        arguments.cpus_per_worker,
        arguments.use_gpu,
        arguments.max_failures,
        arguments.min_workers,
        arguments.gpus_per_worker,
    )

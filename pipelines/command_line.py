"""Command lines that take an experiment: a recipe, and settings that change it."""

import argparse

from mst.command_line import add_options, given
from mst.config import Config
from mst.overrides import override
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

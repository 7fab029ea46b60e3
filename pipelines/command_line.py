"""Command lines that take an experiment: a recipe, and settings that change it."""

import argparse

from mst.command_line import add_options, given
from mst.config import Config, override
from mst.errors import ConfigError
from pipelines.recipes import RECIPES


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe`, and an option for each setting, to a parser."""
    recipes = "; ".join(f"{name}: {(build.__doc__ or '').splitlines()[0]}" for name, build in RECIPES.items())
    parser.add_argument("--recipe", required=True, metavar="NAME", help=recipes)
    add_options(parser)


def config_of(arguments: argparse.Namespace) -> Config:
    """Return the recipe that was asked for with the settings that were given.

    Raises:
        ConfigError: no such recipe, or a wrong value.
    """
    if arguments.recipe not in RECIPES:
        raise ConfigError(f"unknown recipe '{arguments.recipe}'; known are {', '.join(RECIPES)}")
    return override(RECIPES[arguments.recipe](), given(arguments))

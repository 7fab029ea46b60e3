"""Command lines whose options are the settings of an experiment."""

import argparse
import sys
from collections.abc import Callable, Sequence

from mst.config import Config, flatten, leaves, override
from mst.errors import ConfigError, MSTError
from pipelines.recipes import RECIPES


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe`, and an option for each setting, to a parser."""
    recipes = "; ".join(f"{name}: {(build.__doc__ or '').splitlines()[0]}" for name, build in RECIPES.items())
    parser.add_argument("--recipe", required=True, metavar="NAME", help=recipes)
    settings = parser.add_argument_group("settings", "change the recipe's; the defaults are the paper's")
    for name, leaf in leaves(Config()):
        # A percent sign would be a format of argparse's own.
        text = f"{leaf.description} (default {leaf.default})".replace("%", "%%")
        settings.add_argument(f"--{name}", default=None, metavar="VALUE", help=text)


def config_of(arguments: argparse.Namespace) -> Config:
    """Return the recipe that was asked for with the settings that were given.

    Raises:
        ConfigError: no such recipe, or a wrong value.
    """
    if arguments.recipe not in RECIPES:
        raise ConfigError(f"unknown recipe '{arguments.recipe}'; known are {', '.join(RECIPES)}")
    given = {
        name: getattr(arguments, name) for name in flatten(Config()) if getattr(arguments, name) is not None
    }
    return override(RECIPES[arguments.recipe](), given)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; an unknown option is named together with the nearest setting.

    Raises:
        ConfigError: an option is unknown.
    """
    arguments, rest = parser.parse_known_args(argv)
    for text in rest:
        if text.startswith("--"):
            override(Config(), {text.removeprefix("--").partition("=")[0]: ""})  # raises, with a suggestion
    if rest:
        raise ConfigError(f"unexpected argument '{rest[0]}'")
    return arguments


def run(main: Callable[[], None]) -> None:
    """Call a command's main; an error of ours is one line on the terminal, not a traceback."""
    try:
        main()
    except MSTError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")

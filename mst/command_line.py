"""Command lines whose options are the settings of an experiment."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence

from mst.config import Config
from mst.errors import ConfigError, MSTError
from mst.overrides import flatten, leaves, unknown_setting


def add_options(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Add an option for each setting to a parser, or for those whose names begin so."""
    settings = parser.add_argument_group("settings", "change the experiment's; the defaults are the paper's")
    for name, leaf in leaves(Config()):
        if not name.startswith(prefix):
            continue
        # A percent sign would be a format of argparse's own.
        text = f"{leaf.description} (default {leaf.default})".replace("%", "%%")
        settings.add_argument(f"--{name}", default=None, metavar="VALUE", help=text)


def given(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings that a command line names, for `mst.overrides.override`."""
    values = {name: getattr(arguments, name, None) for name in flatten(Config())}
    return {name: value for name, value in values.items() if value is not None}


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; an unknown option is named together with the nearest one.

    Raises:
        ConfigError: an option is unknown.
    """
    arguments, rest = parser.parse_known_args(argv)
    if not rest:
        return arguments
    name = rest[0].partition("=")[0]
    known = sorted(parser._option_string_actions)  # argparse tells no other way
    if not name.startswith("--"):
        raise ConfigError(f"unexpected argument '{name}'")
    settings = [each.removeprefix("--") for each in known if "." in each]
    if "." in name and settings:
        raise ConfigError(unknown_setting(name.removeprefix("--"), settings))
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        f"unknown option '{name}'; " + (f"did you mean '{near[0]}'?" if near else "--help lists all")
    )


def count(text: str) -> int:
    """Read an option's value that is a whole number of at least 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """Read an option's value that is a whole number of at least 0."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least {least}")
    return int(text)


def run(main: Callable[[], None]) -> None:
    """Call a command's main; an error of ours is one line on the terminal, not a traceback."""
    try:
        main()
    except MSTError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")

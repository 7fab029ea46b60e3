"""What a sweep may try: a space as data, read for Optuna and for Ray Tune."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray import tune

from mst.config import Config
from mst.errors import ConfigError
from mst.overrides import flatten, override, unknown_setting

Values = Sequence[Any]
Space = Mapping[str, Mapping[str, Values]]
"""From a setting's name to choice, ordered, uniform or loguniform, and its values (see `tune_spaces`)."""

Settings = dict[str, Any]
"""One point of a space: a value for each setting."""

_KINDS: dict[str, Callable[[Values], BaseDistribution]] = {
    "choice": CategoricalDistribution,
    "ordered": lambda values: IntDistribution(0, len(values) - 1),  # the place of a value
    "uniform": lambda values: FloatDistribution(values[0], values[1]),
    "loguniform": lambda values: FloatDistribution(values[0], values[1], log=True),
}
_MUTATIONS: dict[str, Callable[[Values], Any]] = {
    "choice": list,
    "ordered": list,
    "uniform": lambda values: tune.uniform(*values),
    "loguniform": lambda values: tune.loguniform(*values),
}

LISTED = ("choice", "ordered")
"""Kinds that name each of their values."""


def check_space(space: Space, config: Config) -> None:
    """Refuse a space that this config cannot be varied in.

    A value that does not go with the rest, such as patches that do not divide the image, costs the trials
    that draw it; here is refused what no trial could do anything with.

    Raises:
        ConfigError: a name is no setting; a range is none; or no value of a setting is a valid one.
    """
    for name, asked in space.items():
        if name not in flatten(config):
            raise ConfigError(unknown_setting(name, list(flatten(config))))
        kind, values = _only(name, asked)
        if kind == "ordered" and list(values) != sorted(values):
            raise ConfigError(f"'{name}': ordered needs values from lowest to highest, not {values}")
        if kind not in LISTED and not (len(values) == 2 and 0 <= values[0] < values[1]):
            raise ConfigError(f"'{name}': {kind} needs (lowest, highest), not {values}")
        if kind == "loguniform" and not values[0]:
            raise ConfigError(f"'{name}': loguniform cannot begin with 0")
        refused = [reason for value in values if (reason := infeasible(config, {name: value}))]
        if len(refused) == len(values) or (kind not in LISTED and refused):
            raise ConfigError(refused[0])


def infeasible(config: Config, settings: Settings) -> str | None:
    """Return why a config cannot take these settings; None where it can."""
    try:
        override(config, settings)
    except ConfigError as error:
        return str(error)
    return None


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return a space as Optuna draws from it."""
    return {name: _KINDS[kind](values) for name, (kind, values) in _items(space)}


def settings_of(space: Space, params: Mapping[str, Any]) -> Settings:
    """Return the settings that Optuna's parameters stand for."""
    return {name: _value(*_only(name, space[name]), drawn) for name, drawn in params.items()}


def params_of(space: Space, settings: Settings) -> dict[str, Any]:
    """Return Optuna's parameters for settings, those that are in the space."""
    asked = {name: _only(name, each) for name, each in space.items()}
    return {
        name: list(values).index(settings[name]) if kind == "ordered" else settings[name]
        for name, (kind, values) in asked.items()
    }


def grid(space: Space) -> list[Settings]:
    """Return every point of a space of choices.

    Raises:
        ConfigError: a setting has a range.
    """
    for name, (kind, _) in _items(space):
        if kind not in LISTED:
            raise ConfigError(f"a grid needs choices, but '{name}' is {kind}; use --search random or tpe")
    points = itertools.product(*(values for _, (_, values) in _items(space)))
    return [dict(zip(space, point, strict=True)) for point in points]


def mutations(space: Space) -> dict[str, Any]:
    """Return a space as Ray's population-based training draws from it."""
    return {name: _MUTATIONS[kind](values) for name, (kind, values) in _items(space)}


def clipped(space: Space, settings: Settings) -> Settings:
    """Return settings within the ranges of a space; what is no setting of it is left alone."""
    ranges = {name: values for name, (kind, values) in _items(space) if kind not in LISTED}
    return {
        name: min(max(value, ranges[name][0]), ranges[name][1]) if name in ranges else value
        for name, value in settings.items()
    }


def _value(kind: str, values: Values, drawn: Any) -> Any:
    return values[drawn] if kind == "ordered" else drawn


def _items(space: Space) -> Iterator[tuple[str, tuple[str, Values]]]:
    for name, asked in space.items():
        yield name, _only(name, asked)


def _only(name: str, asked: Mapping[str, Values]) -> tuple[str, Values]:
    if len(asked) != 1 or next(iter(asked)) not in _KINDS or not next(iter(asked.values())):
        raise ConfigError(f"'{name}': expected one of {', '.join(_KINDS)} with values, not {dict(asked)}")
    return next(iter(asked.items()))

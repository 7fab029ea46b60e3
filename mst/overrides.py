"""Settings by their dotted names: listed, read, changed and compared.

A change is `{"model.k_ratio": "0.1"}`, or `--model.k_ratio 0.1` on a command line. An unknown name or a wrong
value is a `ConfigError` that names it.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from mst.config import Config, Settings
from mst.errors import ConfigError


class Leaf(NamedTuple):
    """One setting of the tree."""

    default: Any
    description: str


def leaves(config: Settings, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yield every setting of `config` as (dotted name, value and description)."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Settings):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, Leaf(value, field.description or "")


def flatten(config: Settings) -> dict[str, Any]:
    """Return every setting of `config` by its dotted name."""
    return {name: leaf.default for name, leaf in leaves(config)}


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Return `config` with the settings of `values`, by dotted name, replaced.

    A value given as text is read as the setting's own type; a list is written `8,28`, nothing is `null`.

    Raises:
        ConfigError: a name is no setting (the nearest one is suggested), or a value is wrong.
    """
    known = flatten(config)
    tree = config.model_dump()
    for name, value in values.items():
        if name not in known:
            raise ConfigError(unknown_setting(name, list(known)))
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node[key]
        is_list = isinstance(known[name], tuple)
        node[last] = _parse(value, is_list=is_list) if isinstance(value, str) else value
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a config from nested dictionaries, as JSON gives them.

    Raises:
        ConfigError: a key is unknown or a value is wrong; the message names each of them.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(each) for each in error.errors())) from None


def differences(old: Config, new: Config) -> list[str]:
    """Return a line `name: old -> new` for every setting in which two configs differ."""
    before, after = flatten(old), flatten(new)
    return [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]


def _parse(text: str, *, is_list: bool) -> Any:
    if text == "null":
        return None
    if is_list:  # the numbers in it stay text, which pydantic reads
        return [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    return text


def unknown_setting(name: str, known: list[str]) -> str:
    """Say that a name is no setting, and which one may have been meant."""
    # A name without its group ("k_ratio") is compared with the settings' last parts as well.
    by_last_part = {key.rsplit(".", 1)[-1]: key for key in known}
    near = difflib.get_close_matches(name, known, n=1) or [
        by_last_part[part] for part in difflib.get_close_matches(name.rsplit(".", 1)[-1], by_last_part, n=1)
    ]
    hint = f"; did you mean '{near[0]}'?" if near else f"; known settings: {', '.join(known)}"
    return f"unknown setting '{name}'{hint}"


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return unknown_setting(name, list(flatten(Config())))
    got = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    said = error["msg"].removeprefix("Value error, ")
    return f"setting '{name}': {said}{got}" if name else f"{said}{got}"  # without one it names several itself

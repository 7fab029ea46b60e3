"""Names that a command line gives to what it is about: `NAME=REST`, and folders of those names."""

import re
from collections.abc import Sequence

from mst.errors import ConfigError


def split_name(text: str) -> tuple[str, str]:
    """Part `NAME=REST`; the name is empty where there is none."""
    found = re.fullmatch(r"([^=:/?]+)=(.+)", text)
    return (found[1], found[2]) if found else ("", text)


def as_folder(name: str) -> str:
    """Return a name that a folder can have: all but letters, digits and `-._@` become `_`."""
    return re.sub(r"[^\w.@-]", "_", name)


def check_distinct(names: Sequence[str], option: str) -> None:
    """Refuse two things of one name, or of one folder.

    Raises:
        ConfigError: there are such; it names them and the option that can tell them apart.
    """
    folders = [as_folder(name) for name in names]
    for number, name in enumerate(names):
        if folders[number] in folders[:number]:
            raise ConfigError(f"two are called '{name}'; give them names, as in --{option} before=A after=B")

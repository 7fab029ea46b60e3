"""What a route asks of the gate that stands before it: who may call it, and what its body is."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

_Endpoint = TypeVar("_Endpoint")
_DECLARED = "limits"


class Limits(NamedTuple):
    """A route's limits. One that declares none is for those with a key, and takes JSON."""

    needs_key: bool = True
    """Otherwise anybody may read it."""
    is_probe: bool = False
    """Whether other machines may ask it of a server without keys, and nothing is logged of it."""
    is_light: bool = False
    """Whether it is answered however much there is to do."""
    body: Literal["json", "image", "tensors"] = "json"
    """An image file; or JSON up to where a header says, and tensors behind it."""


PROBE = Limits(needs_key=False, is_probe=True, is_light=True)
PAGE = Limits(needs_key=False, is_light=True)


def limited(limits: Limits) -> Callable[[_Endpoint], _Endpoint]:
    """Declare the limits of what a route calls: a method, or a mounted application."""

    def declare(endpoint: _Endpoint) -> _Endpoint:
        setattr(endpoint, _DECLARED, limits)
        return endpoint

    return declare


def declared(endpoint: object) -> Limits:
    """Return what was declared of what a route calls."""
    found: Limits = getattr(endpoint, _DECLARED, Limits())
    return found

"""API keys: who may ask, and how often."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Mapping
from pathlib import Path

from mst.errors import ConfigError

VARIABLE = "MST_API_KEYS"
_SHORTEST = 16
_BURST_SECONDS = 2.0  # of the allowed rate can be asked for at once

Headers = Mapping[bytes, bytes]


def read_keys(file: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Read the keys: the lines of a file, and what the variable MST_API_KEYS has, separated by commas.

    Raises:
        ConfigError: the file cannot be read, or a key is so short that it could be guessed.
    """
    lines = environment.get(VARIABLE, "").split(",")
    if file:
        try:
            lines += Path(file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API keys in {file} cannot be read: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if any(len(key) < _SHORTEST for key in keys):
        raise ConfigError(f"an API key has fewer than {_SHORTEST} characters")
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, is this machine and nothing else."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Keys:
    """Knows the keys, and how often each was used of late.

    Args:
        keys: that are accepted; where there are none, only this machine is.
        rate: most requests a second for each, on the average.
    """

    def __init__(self, keys: tuple[str, ...], rate: float) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._rate = rate
        self._left: dict[int, tuple[float, float]] = {}  # of each key: requests, and when that was

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, headers: Headers) -> int | None:
        """Return the number of the key that a request bears; None where it bears none of ours.

        Every tool has a way of its own: `Authorization: Bearer KEY` (or `Token`), the password of basic
        authentication, `X-API-Key: KEY`, and X-AnyLabeling's `Token: KEY`.
        """
        digest = hashlib.sha256(_borne(headers)).digest()
        found = None
        for number, known in enumerate(self._digests):  # all of them: the time tells nothing
            if hmac.compare_digest(digest, known):
                found = number
        return found

    def author(self, headers: Headers) -> str:
        """Return a name for whoever bears a key, which does not tell the key; empty without keys."""
        return hashlib.sha256(b"author " + _borne(headers)).hexdigest()[:12] if self else ""

    def wait(self, number: int) -> float:
        """Count a request of a key; return the seconds after which it would be allowed, 0 if it is now."""
        now, most = time.monotonic(), max(1.0, self._rate * _BURST_SECONDS)
        left, then = self._left.get(number, (most, now))
        left = min(most, left + (now - then) * self._rate)
        if left < 1:
            return (1 - left) / self._rate
        self._left[number] = left - 1, now
        return 0.0


def _borne(headers: Headers) -> bytes:
    """The key that a request bears, or something that is none."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() in (b"bearer", b"token"):
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return headers.get(b"x-api-key") or headers.get(b"token") or b""

"""Bytes in JSON: base64 in all forms in which tools write it."""

import base64
import re
from typing import Any

_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")


def from_base64(text: Any) -> bytes:
    """Decode base64: plain, wrapped in lines, URL-safe, without its padding, or as a data URL.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(text, str):
        raise ValueError("not a text in base64")
    prefix = _DATA_URL.match(text)
    letters = "".join((text[prefix.end() :] if prefix else text).split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError:
        raise ValueError("not base64, nor a data URL of it") from None

"""Bytes in JSON: base64 in all forms in which tools write it."""

import base64
import re
from typing import Any

_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_LINE_END = re.compile(r"[\t\r\n]\s*")  # and the next line's indentation
_URL_SAFE = str.maketrans("-_", "+/")


def from_base64(text: Any) -> bytes:
    """Decode base64: plain, wrapped in lines, URL-safe, without its padding, or as a data URL.

    Raises:
        ValueError: it is none of these; or it has a space inside a line, which is what is left of a `+` that
            went through a form.
    """
    if not isinstance(text, str):
        raise ValueError("not a text in base64")
    prefix = _DATA_URL.match(text)
    letters = _LINE_END.sub("", text[prefix.end() :] if prefix else text).translate(_URL_SAFE)
    if " " in letters:
        raise ValueError("not base64: it has a space, as forms make of '+'; send JSON, or %2B for '+'")
    if "=" not in letters:
        letters += "=" * (-len(letters) % 4)
    try:
        return base64.b64decode(letters, validate=True)
    except ValueError:
        raise ValueError("not base64, nor a data URL of it") from None

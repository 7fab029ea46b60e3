"""Pickles as data: reading one runs nothing that is written in it.

An unpickler calls whatever the file names, with the file's arguments, and sets attributes as the file says.
So a file reaches no function or class of Python or NumPy here: each name that pickles of numeric arrays use
stands for a function of this module that checks its arguments, and every other name is refused.

That keeps a file from running code. A file made to exhaust the memory or the stack still can.
"""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mst.errors import DataError

_NUMERIC = re.compile(r"[biufc]\d{1,2}")  # u1, f8, ...; no objects (O), records (V), dates or text


def loads(data: bytes, name: str) -> Any:
    """Read a pickle of plain containers, plain scalars, and NumPy arrays and scalars of numeric dtype.

    Protocols 0 to 5, written with NumPy 1 or 2. An `OrderedDict` is read as a `dict`.

    Args:
        data: the pickle.
        name: what to call it in errors.

    Raises:
        DataError: the pickle holds anything else (the message names it), or is broken.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # of a broken pickle: UnpicklingError, EOFError, ValueError, IndexError ...
        raise DataError(f"{name}: broken pickle ({error!r})") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            refused = f"{module}.{name}"
            raise DataError(
                f"refused to load {refused!r} from a pickle; "
                "only plain containers, scalars and numeric NumPy arrays are read"
            )
        return _GLOBALS[module, name]


class _Global:
    """Stands for a global. A pickle can change attributes of a function or a class, but none of this."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        raise DataError("refused to change a function by a pickle")


class _DType:
    """A dtype as its pickle describes it; NumPy's own `dtype.__setstate__` believes sizes and flags."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, *_: object) -> None:
        if not (isinstance(code, str) and _NUMERIC.fullmatch(code)):
            raise DataError(f"refused to load dtype {code!r} from a pickle; only numbers are read")
        self._code = code
        self._order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *fields = state
        if order not in ("<", ">", "=", "|") or any(each is not None for each in fields[:3]):
            raise DataError("refused to load a dtype of several fields from a pickle; only numbers are read")
        self._order = order

    def resolve(self) -> np.dtype[Any]:
        return np.dtype(self._code).newbyteorder(self._order)


class _Array(np.ndarray[Any, Any]):
    """An array that takes its content from a pickle only in a shape that the content has."""

    __slots__ = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        array = _from_bytes(raw, dtype, shape, "F" if is_fortran else "C")
        genuine: Any = array.__reduce__()[2]
        super().__setstate__(genuine)


def _from_bytes(
    raw: bytes, dtype: _DType, shape: tuple[int, ...], order: Any, axes: tuple[int, ...] | None = None
) -> NDArray[Any]:
    flat = np.frombuffer(raw, dtype.resolve())
    if order == "K" and axes is not None:
        return flat.reshape(shape).transpose(axes).copy()
    return flat.reshape(shape, order=order).copy()


def _scalar(dtype: _DType, raw: bytes) -> Any:
    return _from_bytes(raw, dtype, (1,), "C")[0]


def _encode(text: str, encoding: str) -> bytes:
    """Protocols 0 to 2 write bytes so; other codecs than Latin-1 could import modules or inflate the text."""
    if encoding != "latin1":
        raise DataError(f"refused the codec {encoding!r} of a pickle")
    return text.encode("latin1")


def _ndarray(*_: object) -> None:
    raise DataError("refused to make an array by 'numpy.ndarray' of a pickle")


_GLOBALS = {
    ("numpy", "dtype"): _Global(_DType),
    ("numpy", "ndarray"): _Global(_ndarray),  # named, never called
    ("_codecs", "encode"): _Global(_encode),
    ("__builtin__", "bytes"): _Global(lambda: b""),  # how protocols 0 to 2 write b""
    ("collections", "OrderedDict"): _Global(dict),
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Global(lambda *_: _Array(0))
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Global(_scalar)
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _Global(_from_bytes)

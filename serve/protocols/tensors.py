"""Tensors of the Open Inference Protocol, in JSON and in its binary extension.

A binary body is JSON, whose length the header `Inference-Header-Content-Length` gives, followed by the
tensors that name a `binary_data_size`, one after the other, little-endian; each element of BYTES is preceded
by its length in four bytes.
"""

import math
from typing import Annotated, Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from pydantic import Field
from pydantic_core import to_json

from serve.errors import RequestError
from serve.protocols.wire import Wire
from serve.wire.encoding import json_rows

HEADER_LENGTH = "Inference-Header-Content-Length"

Array = NDArray[Any]
"""Numbers, or objects: str where BYTES came in JSON, bytes where they came in binary."""

_BINARY = "application/octet-stream"
_MAX_NUMBERS = 2**20  # that are written as JSON: 0.15 s of Python, in which nobody else is answered
_MAX_STRINGS = 1000  # elements of BYTES, each an object in memory; no input has more than one
_DTYPES: dict[str, type] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


class Parameters(Wire):
    """Of a request, an input or an output; each reads those that are its own."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None


class Tensor(Wire):
    """An input."""

    name: str
    datatype: str
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(max_length=4)]
    parameters: Parameters = Parameters()
    data: list[Any] | None = None


def split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON and what follows it.

    Raises:
        RequestError: the header does not fit the body.
    """
    if length is None:
        return body, b""
    if not length.isdecimal() or len(length) > 15 or int(length) > len(body):
        raise RequestError(f"{HEADER_LENGTH} is '{length[:20]}', for a body of {len(body)} bytes")
    return body[: int(length)], body[int(length) :]


def unpack(tensors: list[Tensor], binary: bytes) -> dict[str, Array]:
    """Return the inputs by name.

    Raises:
        RequestError: one has an unknown type, or other data than its shape says.
    """
    arrays, start = {}, 0
    for tensor in tensors:
        size = tensor.parameters.binary_data_size
        if size is None:
            arrays[tensor.name] = _shaped(tensor, _from_json(tensor))
            continue
        if start + size > len(binary):
            raise RequestError(f"input '{tensor.name}': its {size} bytes end after the body does")
        arrays[tensor.name] = _shaped(tensor, _from_binary(tensor, binary[start : start + size]))
        start += size
    if start != len(binary):
        raise RequestError(f"{len(binary) - start} bytes at the body's end belong to no input")
    return arrays


def pack(about: dict[str, Any], outputs: dict[str, tuple[str, Array]], binary: set[str]) -> Response:
    """Make a reply of outputs, (datatype, array) by name; those in `binary` follow the JSON.

    Arrays of bool are quick to write as numbers, whichever their datatype says that they are.

    Raises:
        RequestError: one has too many numbers to be written as JSON.
    """
    tensors, tail = [], []
    for name, (kind, array) in outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(array.shape)}
        if name in binary:
            tail.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
            tensors.append(to_json(tensor | {"parameters": {"binary_data_size": len(tail[-1])}}))
        else:
            tensors.append(to_json(tensor)[:-1] + b',"data":' + _to_json(name, array) + b"}")
    text = to_json(about)[:-1] + b',"outputs":[' + b",".join(tensors) + b"]}"
    if not tail:
        return Response(text, media_type="application/json")
    return Response(b"".join([text, *tail]), media_type=_BINARY, headers={HEADER_LENGTH: str(len(text))})


def _to_json(name: str, array: Array) -> bytes:
    if array.dtype == np.bool_:
        return json_rows(array.reshape(1, -1))[1:-1]
    if array.size > _MAX_NUMBERS:
        raise RequestError(
            f"output '{name}' has {array.size} numbers, JSON at most {_MAX_NUMBERS}: ask for it with "
            "the request's parameter binary_data_output, or its own binary_data"
        )
    return to_json(array.ravel().tolist())


def _from_json(tensor: Tensor) -> Array:
    if tensor.data is None:
        raise RequestError(f"input '{tensor.name}' has neither data nor binary_data_size")
    if tensor.datatype == "BYTES":
        return np.array(_flat(tensor.data), dtype=object)
    try:
        with np.errstate(over="raise"):
            return np.asarray(tensor.data, _dtype(tensor)).ravel()
    except (ValueError, TypeError, OverflowError, FloatingPointError):
        raise RequestError(f"input '{tensor.name}': its data are not all {tensor.datatype}") from None


def _from_binary(tensor: Tensor, data: bytes) -> Array:
    if tensor.datatype != "BYTES":
        dtype = np.dtype(_dtype(tensor)).newbyteorder("<")
        if len(data) % dtype.itemsize:
            raise RequestError(f"input '{tensor.name}': {len(data)} bytes are no whole {tensor.datatype}")
        return np.frombuffer(data, dtype)
    elements: list[bytes] = []
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            raise RequestError(f"input '{tensor.name}': an element ends after the tensor does")
        if len(elements) == _MAX_STRINGS:
            raise RequestError(f"input '{tensor.name}' has more than {_MAX_STRINGS} elements")
        elements.append(data[start + 4 : end])
        start = end
    return np.array([*elements, None], dtype=object)[:-1]  # None: or numpy would look into equal lengths


def _dtype(tensor: Tensor) -> type:
    if tensor.datatype not in _DTYPES:
        known = ", ".join(["BYTES", *_DTYPES])
        raise RequestError(
            f"input '{tensor.name}' has the unknown datatype '{tensor.datatype}'; known: {known}"
        )
    return _DTYPES[tensor.datatype]


def _shaped(tensor: Tensor, flat: Array) -> Array:
    if flat.size != math.prod(tensor.shape):
        raise RequestError(
            f"input '{tensor.name}' has {flat.size} elements, not those of shape {tensor.shape}"
        )
    return flat.reshape(tensor.shape)


def _flat(data: list[Any]) -> list[Any]:
    return [each for part in data for each in (_flat(part) if isinstance(part, list) else [part])]

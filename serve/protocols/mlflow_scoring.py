"""What `mlflow models serve` answers: records in, predictions out, so that MLflow's clients work unchanged.

A record has the fields of POST /v1/segment, `image` in base64 and `clicks`; a prediction is that route's mask
and what is known of it.
"""

import asyncio
import json
from functools import partial
from typing import Annotated, Any

import mlflow
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve.errors import RequestError
from serve.protocols.failures import IN_ITS_FORM, route_that_says
from serve.protocols.wire import ImageFile, Wire, click_at
from serve.state.core import Core, few_at_once
from serve.wire.encoding import encode
from serve.wire.schemas import MAX_CLICKS, ClickIn, MaskFormat

_KINDS = ("inputs", "instances", "dataframe_split", "dataframe_records")
_MAX_RECORDS = 100
_CODES = {404: "RESOURCE_DOES_NOT_EXIST", 503: "TEMPORARILY_UNAVAILABLE", 500: "INTERNAL_ERROR"}


class Parameters(Wire):
    """Of all records of a request."""

    format: MaskFormat = "rle"


class Split(Wire):
    """A table by columns."""

    columns: list[str]
    data: list[list[Any]]


class Record(Wire):
    """One image and the clicks on one object of it."""

    image: ImageFile
    clicks: Annotated[list[ClickIn], Field(min_length=1, max_length=MAX_CLICKS)]


class Invocation(BaseModel):
    """A request: records under exactly one of the names that MLflow has for them."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[dict[str, Any]] | dict[str, list[Any]] | None = None
    instances: list[dict[str, Any]] | dict[str, list[Any]] | None = None
    dataframe_split: Split | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    params: Parameters | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, body: Any) -> Any:
        if isinstance(body, dict) and sum(kind in body for kind in _KINDS) != 1:
            raise ValueError(f"needs exactly one of {', '.join(_KINDS)}")
        return body

    def records(self) -> list[Record]:
        """Return the records, whichever way they came.

        Raises:
            ValidationError: one lacks a field, or has a wrong one.
            RequestError: there are too many, or columns of different lengths.
        """
        if self.dataframe_split is not None:
            split = self.dataframe_split
            if any(len(row) != len(split.columns) for row in split.data):
                raise RequestError("dataframe_split: a row has another length than the columns")
            rows = [dict(zip(split.columns, row, strict=True)) for row in split.data]
        else:
            given = self.inputs or self.instances or self.dataframe_records or []
            rows = given if isinstance(given, list) else _by_rows(given)
        if len(rows) > _MAX_RECORDS:
            raise RequestError(f"{len(rows)} records; at most {_MAX_RECORDS} are accepted at once")
        return [Record.model_validate(row) for row in rows]


class Handlers:
    """What answers MLflow's clients.

    Args:
        core: images and predictions.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def ping(self) -> Response:
        """Answer once the model can."""
        await self._core.ready()
        return PlainTextResponse("\n")

    async def version(self) -> Response:
        """Name the version of MLflow whose protocol this is."""
        return PlainTextResponse(mlflow.__version__)

    async def invocations(self, request: Request) -> dict[str, Any]:
        """Return a prediction for each record."""
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise RequestError("the content type must be application/json")
        asked = Invocation.model_validate(_json(await request.body()))
        form = (asked.params or Parameters()).format
        predictions = await few_at_once(partial(self._predict, record, form) for record in asked.records())
        return {"predictions": predictions}

    async def _predict(self, record: Record, form: MaskFormat) -> dict[str, Any]:
        stored = await self._core.add_image(record.image)
        clicks = [click_at(each.x, each.y, each.is_positive, stored.pixels) for each in record.clicks]
        found = await self._core.segment(stored, clicks)
        mask = await asyncio.to_thread(encode, found.mask, form)
        return {"mask": mask, "score": found.score, "model": found.model}


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None


def _by_rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    if len({len(column) for column in columns.values()}) > 1:
        raise RequestError("the columns have different lengths")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _say(status: int, text: str) -> Response:
    code = _CODES.get(status, "BAD_REQUEST")
    return JSONResponse({"error_code": code, "message": text}, status_code=400 if status == 422 else status)


def router(core: Core) -> APIRouter:
    """Return the routes that MLflow's clients call, but for /health, which `label_studio` answers."""
    handlers = Handlers(core)
    routes = APIRouter(tags=["MLflow"], route_class=route_that_says(_say), responses=IN_ITS_FORM)
    routes.add_api_route("/ping", handlers.ping, methods=["GET"], response_class=PlainTextResponse)
    routes.add_api_route("/version", handlers.version, methods=["GET"], response_class=PlainTextResponse)
    routes.add_api_route("/invocations", handlers.invocations, methods=["POST"])
    return routes

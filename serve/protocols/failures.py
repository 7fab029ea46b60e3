"""Errors in a protocol's own form, whatever raised them: the core, the body's limit or FastAPI's checks."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from mst.errors import MSTError
from serve.errors import OverloadedError, is_away, message_of, status_of

Say = Callable[[int, str], Response]
"""From an HTTP status and a line of text to a reply."""


IN_ITS_FORM: dict[int | str, dict[str, Any]] = {
    422: {"description": "What is wrong with the request, in the protocol's own form"}
}
"""Replies of such routes, for the interface's description: FastAPI would promise its own form."""


def route_that_says(say: Say) -> type[APIRoute]:
    """Return a kind of route whose errors are replies made by `say`."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            answer = super().get_route_handler()

            async def answer_or_say(request: Request) -> Response:
                try:
                    return await answer(request)
                except (RequestValidationError, ValidationError) as error:
                    status, text = 422, first_mistake(error)
                except HTTPException as error:
                    status, text = error.status_code, str(error.detail)
                except MSTError as error:
                    status, text = status_of(error), message_of(error)
                except (RayError, RayServeException) as error:
                    if not is_away(error):
                        raise
                    status, text = 503, "the model is not there"
                # What it repeats of the request may be half of a pair of surrogates, which JSON can hold.
                reply = say(status, text.encode(errors="backslashreplace").decode())
                if reply.status_code == 503:
                    reply.headers["Retry-After"] = str(OverloadedError.retry_after)
                return reply

            return answer_or_say

    return Route


def first_mistake(error: RequestValidationError | ValidationError) -> str:
    """Name the first wrong field, and why; the input itself is left out."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    why = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {why}" if where else why

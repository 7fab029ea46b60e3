"""A reverse proxy that shows a server below a prefix, as nginx does: with the prefix taken away, or left."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from fastapi import FastAPI, Request, Response

from tests.conftest import listening

_NOT_PASSED_ON = {"host", "connection", "content-length", "transfer-encoding", "content-encoding"}


def proxy(url: str, prefix: str, *, strips: bool) -> FastAPI:
    """Pass requests below a prefix on to a server; all others are 404."""
    app = FastAPI(docs_url=None, openapi_url=None)
    behind = httpx.AsyncClient(base_url=url, timeout=60)

    async def pass_on(request: Request, rest: str) -> Response:
        path = f"/{rest}" if strips else f"{prefix}/{rest}"
        headers = {name: value for name, value in request.headers.items() if name not in _NOT_PASSED_ON}
        reply = await behind.request(
            request.method, path, params=request.query_params, headers=headers, content=await request.body()
        )
        kept = {name: value for name, value in reply.headers.items() if name not in _NOT_PASSED_ON}
        return Response(reply.content, reply.status_code, kept)

    app.add_api_route(f"{prefix}/{{rest:path}}", pass_on, methods=["GET", "POST"])
    return app


@contextmanager
def behind_prefix(url: str, prefix: str, *, strips: bool) -> Iterator[str]:
    """Show a server below a prefix of another address; return that, with a slash in the end."""
    with listening(proxy(url, prefix, strips=strips)) as address:
        yield f"{address}{prefix}/"

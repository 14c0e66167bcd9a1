"""Code around every request: headers, the refusal of other sites' requests, timing, and error messages."""

from __future__ import annotations

import contextlib
import logging
import time
from urllib.parse import urlsplit

import psycopg
from psycopg_pool import PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

log = logging.getLogger("uvicorn.error")

HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}


class Guard:
    """Adds response headers and timings, and refuses changes requested by another site's page."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] not in ("GET", "HEAD"):
            # Browsers send the origin of a request. Programs that don't send it carry nobody's cookies.
            origin = headers.get(b"origin")
            other = origin is not None and urlsplit(origin).netloc != headers.get(b"host", "")
            if other or headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                said = f"a page of {origin or 'another site'} may not change photos here"
                return await error(403, said)(scope, receive, send)
        scope["times"] = times = {}
        started = time.perf_counter()

        async def guarded(message):
            if message["type"] == "http.response.start":
                times["total"] = time.perf_counter() - started
                timing = ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in times.items())
                message["headers"] = [*message["headers"], *HEADERS.items(), (b"server-timing", timing.encode())]
                if not any(name == b"cache-control" for name, _ in message["headers"]):
                    message["headers"].append((b"cache-control", b"no-cache"))
            await send(message)

        return await self.app(scope, receive, guarded)


@contextlib.contextmanager
def timed(request: Request, name: str):
    """Adds the time that a block took to the Server-Timing header."""
    times, started = request.scope["times"], time.perf_counter()
    try:
        yield
    finally:
        times[name] = times.get(name, 0) + time.perf_counter() - started


# ---------------------------------------------------------------- errors


def error(
    status: int, message: str, detail: str | None = None, hint: str | None = None, sqlstate: str | None = None
) -> Response:
    return JSONResponse({"error": message, "detail": detail, "hint": hint, "sqlstate": sqlstate}, status)


async def http_error(request: Request, raised: HTTPException) -> Response:
    return error(raised.status_code, raised.detail)


async def database_error(request: Request, raised: psycopg.Error) -> Response:
    """The database's message is for the user: it names the wrong value, the reason and the remedy."""
    state, said = raised.sqlstate, raised.diag
    if isinstance(raised, PoolTimeout):
        return error(503, "the database doesn't answer", hint="Try again in a moment.")
    if isinstance(raised, psycopg.DataError) and state is None:  # psycopg's own: a NUL in a text
        return error(422, str(raised))
    if state is None or state[:2] in ("08", "57"):
        log.error("%s", raised)
        message = said.message_primary or "the database can't be reached"
        return error(503, message, said.message_detail, said.message_hint, state)
    if state == "23505":
        return error(409, "that name is taken", sqlstate=state)
    # In these classes, the caller's value is the cause: 22 data, 23 constraints, 0A and 54 formats and limits.
    theirs = state[:2] in ("22", "23", "0A", "54")
    if not theirs:
        log.error("%s: %s", state, raised)
    message = said.message_primary or str(raised)
    return error(422 if theirs else 500, message, said.message_detail, said.message_hint, state)

"""A photo search over clip_search: this serves files and passes parameters, the SQL does the rest.

    uvicorn server:app        with PGHOST, PGPORT, PGUSER, PGDATABASE set, and schema.sql run there

Settings by environment: WEBAPP_HOSTS (host names it answers to, default localhost,127.0.0.1), WEBAPP_MAX_BYTES (of an
upload, default 32 MiB), WEBAPP_CONNECTIONS (to the database, default 4).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pathlib
from urllib.parse import urlsplit

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

STATIC = pathlib.Path(__file__).parent / "static"
HOSTS = os.environ.get("WEBAPP_HOSTS", "localhost,127.0.0.1").split(",")
MAX_BYTES = int(os.environ.get("WEBAPP_MAX_BYTES") or 32 * 1024 * 1024)
CONNECTIONS = int(os.environ.get("WEBAPP_CONNECTIONS") or 4)
SHOWN = 60  # photos an answer has at most; hnsw.ef_search below must not be less
log = logging.getLogger("uvicorn.error")

NEWEST = "SELECT id, title FROM webapp.photo ORDER BY id DESC LIMIT %(shown)s"
BY_WORDS = """
    SELECT id, title, 1 - (embedding <=> clip_embed_text(%(words)s)) AS cosine
    FROM webapp.photo ORDER BY embedding <=> clip_embed_text(%(words)s) LIMIT %(shown)s"""
BY_EXAMPLE = """
    SELECT id, title, 1 - (embedding <=> (SELECT embedding FROM webapp.photo WHERE id = %(id)s)) AS cosine
    FROM webapp.photo ORDER BY embedding <=> (SELECT embedding FROM webapp.photo WHERE id = %(id)s) LIMIT %(shown)s"""
GROUPS = """
    SELECT c.size, c.cohesion, m.photos
    FROM clip_clusters('webapp') c CROSS JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_object('id', id, 'title', title) ORDER BY distance) AS photos
        FROM (SELECT id, title, embedding <=> c.centroid AS distance FROM webapp.photo
              WHERE cluster_id = c.id ORDER BY distance LIMIT 12) near) m
    ORDER BY c.size DESC, c.id LIMIT 100"""
SAME = "SELECT id, title FROM webapp.photo WHERE digest = %(digest)s"
INSERT = "INSERT INTO webapp.photo (title, data) VALUES (%(title)s, %(data)s) RETURNING id, title"
DELETE = "DELETE FROM webapp.photo WHERE id = %(id)s RETURNING id"
SMALL = "SELECT thumbnail AS image FROM webapp.photo WHERE id = %(id)s"
# Made anew from what was uploaded: nobody gets bytes to look at that a stranger has chosen.
LARGE = "SELECT clip_thumbnail(data, 1600, 'jpeg') AS image FROM webapp.photo WHERE id = %(id)s"


async def configure(connection: psycopg.AsyncConnection) -> None:
    """Settings of a new connection; the model is loaded here and not while somebody waits for an answer."""
    await connection.execute("SELECT clip_embed_text('a photo')")
    await connection.execute("SET hnsw.ef_search = 100")
    await connection.execute("SET statement_timeout = '30s'")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette):
    async with AsyncConnectionPool(
        min_size=1,
        max_size=CONNECTIONS,
        timeout=15,
        configure=configure,
        kwargs={"autocommit": True, "row_factory": dict_row},
    ) as pool:
        await pool.wait(30)
        app.state.pool = pool
        yield


async def query(request: Request, statement: str, **parameters: object) -> list[dict]:
    async with request.app.state.pool.connection() as connection:
        cursor = await connection.execute(statement, parameters)
        return await cursor.fetchall()


async def photos(request: Request) -> Response:
    """?q=words, ?like=id, or the newest."""
    words, like = request.query_params.get("q", "").strip(), request.query_params.get("like")
    if words:
        found = await query(request, BY_WORDS, words=words, shown=SHOWN)
    elif like is not None:
        if not (like.isascii() and like.isdecimal() and len(like) <= 18):
            raise HTTPException(400, f"like={like!r} is not the number of a photo")
        found = await query(request, BY_EXAMPLE, id=int(like), shown=SHOWN)
        if not any(photo["id"] == int(like) for photo in found) and not await query(request, SMALL, id=int(like)):
            raise HTTPException(404, f"photo {like} does not exist")
        found = [photo for photo in found if photo["id"] != int(like)]
    else:
        found = await query(request, NEWEST, shown=SHOWN)
    return JSONResponse({"photos": found})


async def groups(request: Request) -> Response:
    return JSONResponse({"groups": await query(request, GROUPS)})


async def upload(request: Request) -> Response:
    """The file is the body; ?title= names it. One that is there already is not stored twice."""
    data, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        # Of a file that is too large the rest is read and let go, since a browser that is cut off while it sends shows
        # no answer; to eight times the limit.
        if size <= MAX_BYTES:
            data += chunk
        elif size > 8 * MAX_BYTES:
            break
    if size > MAX_BYTES:
        raise HTTPException(413, f"the file is larger than the {MAX_BYTES / 1e6:.3g} MB that are taken here")
    title = " ".join(request.query_params.get("title", "").replace("\0", " ").split())[:200] or "Untitled"
    digest = hashlib.sha256(data).digest()
    if same := await query(request, SAME, digest=digest):
        return JSONResponse(same[0] | {"added": False})
    try:
        [photo] = await query(request, INSERT, title=title, data=bytes(data))
    except psycopg.errors.UniqueViolation:  # in the meantime
        [photo] = await query(request, SAME, digest=digest)
        return JSONResponse(photo | {"added": False})
    return JSONResponse(photo | {"added": True}, 201)


async def delete(request: Request) -> Response:
    if not await query(request, DELETE, id=request.path_params["id"]):
        raise HTTPException(404, f"photo {request.path_params['id']} does not exist")
    return Response(status_code=204)


async def image(request: Request) -> Response:
    statement = LARGE if request.path_params["size"] == "large" else SMALL
    found = await query(request, statement, id=request.path_params["id"])
    if not found:
        raise HTTPException(404, f"photo {request.path_params['id']} does not exist")
    # A number is never given to another photo.
    return Response(
        found[0]["image"], media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400, immutable"}
    )


async def index(request: Request) -> Response:
    return Response((STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8")


# ---------------------------------------------------------------- errors


def error(status: int, message: str, detail: str | None = None, hint: str | None = None) -> Response:
    return JSONResponse({"error": message, "detail": detail, "hint": hint}, status)


async def http_error(request: Request, raised: HTTPException) -> Response:
    return error(raised.status_code, raised.detail)


async def database_error(request: Request, raised: psycopg.Error) -> Response:
    """What the database says is for the user: which value was wrong, why, and the way out."""
    state, said = raised.sqlstate, raised.diag
    if isinstance(raised, PoolTimeout):
        return error(503, "all connections to the database are busy", hint="Try again in a moment.")
    if isinstance(raised, psycopg.DataError) and state is None:  # psycopg's own: a NUL in a text
        return error(422, str(raised))
    if state is None or state[:2] in ("08", "57"):
        log.error("%s", raised)
        return error(
            503, said.message_primary or "the database can't be reached", said.message_detail, said.message_hint
        )
    # Of these the caller's value is the cause: 22 data, 23 constraints, 0A and 54 formats and limits.
    theirs = state[:2] in ("22", "23", "0A", "54")
    if not theirs:
        log.error("%s: %s", state, raised)
    return error(422 if theirs else 500, said.message_primary or str(raised), said.message_detail, said.message_hint)


# ---------------------------------------------------------------- guards

HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Guard:
    """Response headers, and no changes on behalf of another site's page."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        if scope["method"] not in ("GET", "HEAD") and origin:
            if urlsplit(origin).netloc != headers.get(b"host", b"").decode("latin-1"):
                return await error(403, f"a page of {origin} may not change photos here")(scope, receive, send)

        async def guarded(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        return await self.app(scope, receive, guarded)


app = Starlette(
    routes=[
        Route("/", index),
        Route("/api/photos", photos, methods=["GET"]),
        Route("/api/photos", upload, methods=["POST"]),
        Route("/api/photos/{id:int}", delete, methods=["DELETE"]),
        Route("/api/groups", groups),
        Route("/photos/{id:int}/{size}.jpg", image),
        Mount("/static", StaticFiles(directory=STATIC)),
    ],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(Guard)],
    exception_handlers={HTTPException: http_error, psycopg.Error: database_error},
    lifespan=lifespan,
)

"""A photo search over clip_search: this serves files and passes parameters, the SQL (queries.py) does the rest.

    uvicorn server:app        with PGHOST, PGPORT, PGUSER, PGDATABASE set, and schema.sql run there

Settings by environment: WEBAPP_HOSTS (host names it answers to, default localhost,127.0.0.1), WEBAPP_MAX_BYTES (of an
upload, default 32 MiB), WEBAPP_CONNECTIONS (to the database, default 4), WEBAPP_UNDO_SECONDS (between a deletion and the
removal, default 20), WEBAPP_RELEVANCE (the cut of a search, default 0.5).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import re

import psycopg
import queries
from guards import Guard, database_error, http_error, log, timed
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from zipped import attachment, file_name, zipped

STATIC = pathlib.Path(__file__).parent / "static"
HOSTS = os.environ.get("WEBAPP_HOSTS", "localhost,127.0.0.1").split(",")
MAX_BYTES = int(os.environ.get("WEBAPP_MAX_BYTES") or 32 * 1024 * 1024)
CONNECTIONS = int(os.environ.get("WEBAPP_CONNECTIONS") or 4)
UNDO_SECONDS = float(os.environ.get("WEBAPP_UNDO_SECONDS") or 20)
CUT = float(os.environ.get("WEBAPP_RELEVANCE") or 0.5)
CANDIDATES = 400  # nearest photos whose relevance is computed first
MAX_PAGE = 1000
MAX_JSON = 1_000_000
MAX_ZIPPED = 1000  # photos in one download


# ---------------------------------------------------------------- the database


async def configure(connection: psycopg.AsyncConnection) -> None:
    """Sets up a new connection and loads the model, so that no request has to wait for that."""
    await connection.execute("SELECT clip_embed_text('a photo')")
    # An HNSW scan gives at most ef_search rows, unless it continues.
    await connection.execute(f"SET hnsw.ef_search = {CANDIDATES}")
    await connection.execute("SET hnsw.iterative_scan = strict_order")
    # PostgreSQL then drops the filters that a request doesn't use from the plan.
    await connection.execute("SET plan_cache_mode = force_custom_plan")
    await connection.execute("SET statement_timeout = '30s'")


async def remove_deleted(app: Starlette) -> None:
    """Removes deleted photos once their deletion can no longer be undone. Sleeps while there are none."""
    while True:
        await app.state.deleted.wait()
        app.state.deleted.clear()
        await asyncio.sleep(UNDO_SECONDS)
        try:
            async with app.state.pool.connection() as connection:
                await connection.execute(queries.PURGE, {"seconds": UNDO_SECONDS})
                [left] = await (await connection.execute(queries.DELETED)).fetchall()
        except psycopg.Error as error:
            log.error("deleted photos stay for now: %s", error)
            left = {"any": True}
        if left["any"]:
            app.state.deleted.set()


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
        app.state.pool, app.state.deleted = pool, asyncio.Event()
        async with pool.connection() as connection:
            [app.state.features] = await (await connection.execute(queries.FEATURES)).fetchall()
        app.state.deleted.set()  # from before a restart
        purging = asyncio.create_task(remove_deleted(app))
        yield
        purging.cancel()


async def query(request: Request, statement: str, **parameters: object) -> list[dict]:
    with timed(request, "db"):
        async with request.app.state.pool.connection() as connection:
            return await (await connection.execute(statement, parameters)).fetchall()


# ---------------------------------------------------------------- parameters


def number(request: Request, name: str) -> int | None:
    """A row's id from the URL."""
    given = request.query_params.get(name)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= 18):
        raise HTTPException(400, f"{name}={given!r} is not a number")
    return int(given)


def limit(request: Request) -> int:
    return max(1, min(MAX_PAGE, number(request, "limit") or 100))


def words(request: Request) -> str | None:
    return request.query_params.get("q", "").strip()[:1000] or None


def after(request: Request, *kinds: type) -> tuple:
    """Where a page continues: the value returned with the previous page."""
    given = request.query_params.get("after")
    if given is None:
        return (None,) * len(kinds)
    try:
        values = given.split("_")
        return tuple(kind(value) for kind, value in zip(kinds, values, strict=True))
    except ValueError:
        raise HTTPException(400, f"after={given!r} is not where a page ended") from None


def wanted(request: Request) -> dict:
    return {"album": number(request, "album"), "group": number(request, "group")}


async def body(request: Request, limit: int) -> bytes:
    data, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        # If a body is too large, the rest is read and dropped (up to eight times the limit): a browser whose upload is
        # cut off shows no answer.
        if size <= limit:
            data += chunk
        elif size > 8 * limit:
            break
    if size > limit:
        raise HTTPException(413, f"the file is larger than the {limit / 1e6:.3g} MB that are accepted here")
    return bytes(data)


async def fields(request: Request) -> dict:
    try:
        given = json.loads(await body(request, MAX_JSON))
        if isinstance(given, dict):
            return given
    except ValueError:
        pass
    raise HTTPException(400, "the request is not a JSON object")


async def ids(request: Request) -> list[int]:
    given = (await fields(request)).get("ids")
    if not isinstance(given, list) or not all(type(id) is int and 0 <= id < 2**63 for id in given):
        raise HTTPException(400, "ids is not a list of numbers")
    return given


async def name(request: Request) -> str:
    given = (await fields(request)).get("name")
    given = " ".join(given.split()) if isinstance(given, str) else ""
    if not 1 <= len(given) <= 100:
        raise HTTPException(422, "an album's name has 1 to 100 characters")
    return given


# ---------------------------------------------------------------- lists


async def photos(request: Request) -> Response:
    """?q=words or ?like=id (with &rest=1: all photos by distance), otherwise by date or, with sort=added, by
    arrival."""
    like = number(request, "like")
    if words(request) or like is not None:
        if like is not None:
            await must_exist(request, like)
        return await (ranked if "rest" in request.query_params else found)(request)
    parameters = wanted(request) | {"limit": limit(request)}
    if request.query_params.get("sort") == "added":
        [last] = after(request, int)
        shown = await query(request, queries.BY_ARRIVAL, id=last, **parameters)
        end = str(shown[-1]["id"]) if shown else None
    else:
        date, last = after(request, datetime.datetime.fromisoformat, int)
        month = request.query_params.get("month")
        if month is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
            raise HTTPException(400, f"month={month!r} is not a month, such as 2026-05")
        month = month and f"{month}-01"
        shown = await query(request, queries.BY_DATE, date=date, id=last, month=month, **parameters)
        end = f"{shown[-1]['date'].isoformat()}_{shown[-1]['id']}" if shown else None
    return listed(shown, end if len(shown) == parameters["limit"] else None)


async def found(request: Request) -> Response:
    """The first answer to a search: the relevant photos, or the nearest if the relevance is not known."""
    parameters = wanted(request) | {"words": words(request), "like": number(request, "like")}
    [count] = await query(request, queries.COUNT, **wanted(request))
    if not (parameters["words"] and request.app.state.features["relevance"]):
        shown = await query(request, queries.NEAREST, limit=limit(request), **parameters)
        return listed(shown, None, total=count["total"], cut=False)
    candidates = CANDIDATES
    while True:
        shown = await query(request, queries.RELEVANT, limit=candidates, cut=CUT, **parameters)
        # If few of the farther candidates are relevant, no photo beyond them is.
        if max((photo.pop("place") for photo in shown), default=0) <= 0.75 * candidates or candidates >= count["total"]:
            break
        candidates *= 4
    return listed(shown, None, total=count["total"], cut=True)


async def ranked(request: Request) -> Response:
    distance, last = after(request, float, int)
    parameters = wanted(request) | {"words": words(request), "like": number(request, "like"), "limit": limit(request)}
    shown = await query(request, queries.RANKED, distance=distance, id=last, **parameters)
    end = f"{shown[-1]['distance']!r}_{shown[-1]['id']}" if len(shown) == parameters["limit"] else None
    return listed(shown, end)


def listed(shown: list[dict], end: str | None, **more: object) -> Response:
    for photo in shown:
        photo["date"] = photo["date"].isoformat()
        photo.pop("distance", None)
    return JSONResponse({"photos": shown, "next": end, **more})


async def months(request: Request) -> Response:
    parameters = wanted(request)
    shown = await query(request, queries.MONTHS, **parameters)
    named = {}
    if parameters["album"] is not None:
        found = await query(request, queries.ALBUM, id=parameters["album"])
        if not found:
            raise HTTPException(404, f"album {parameters['album']} does not exist")
        named = found[0]
    return JSONResponse({"months": shown, **named})


async def groups(request: Request) -> Response:
    return JSONResponse({"groups": await query(request, queries.GROUPS)})


# ---------------------------------------------------------------- one photo


async def must_exist(request: Request, id: int) -> None:
    if not await query(request, queries.DIGEST, id=id):
        raise HTTPException(404, f"photo {id} does not exist")


async def photo(request: Request) -> Response:
    """A photo's details; with ?q= or ?like=, also why it was found."""
    features, id = request.app.state.features, request.path_params["id"]
    statement = queries.PHOTO.format(tags="p.tags" if features["tags"] else "NULL::text[]")
    shown = await query(request, statement, id=id)
    if not shown:
        raise HTTPException(404, f"photo {id} does not exist")
    [details] = shown
    details["date"] = details["date"].isoformat()
    if asked := words(request):
        details["why"] = await query(request, queries.WHY, id=id, words=asked)
        if features["relevance"]:
            details |= (await query(request, queries.RELEVANCE, id=id, words=asked))[0]
        if features["explain"]:
            details |= (await query(request, queries.SUITS, id=id, words=asked))[0]
    elif (like := number(request, "like")) is not None:
        details["why"] = await query(request, queries.WHY_LIKE, id=id, like=like)
    return JSONResponse(details)


async def image(request: Request) -> Response:
    id, size = request.path_params["id"], request.path_params["size"]
    if size not in ("small", "large"):
        raise HTTPException(404, f"photos have no size {size!r}")
    headers = {"Cache-Control": "private, max-age=86400"}

    def tag(row: dict) -> str:
        return f'"{row["digest"].hex()[:32]}-{size}"'

    if asked := request.headers.get("if-none-match"):
        known = await query(request, queries.DIGEST, id=id)
        if known and tag(known[0]) in asked:
            return Response(status_code=304, headers=headers | {"ETag": tag(known[0])})
    shown = await query(request, queries.LARGE if size == "large" else queries.THUMBNAIL, id=id)
    if not shown:
        raise HTTPException(404, f"photo {id} does not exist")
    return Response(shown[0]["image"], media_type="image/jpeg", headers=headers | {"ETag": tag(shown[0])})


async def download(request: Request) -> Response:
    """The uploaded file, or a ZIP archive if several photos are requested."""
    asked = request.query_params.get("ids", "")
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", asked, re.ASCII):
        raise HTTPException(400, "ids is not a list of numbers")
    wanted = list(dict.fromkeys(map(int, asked.split(","))))
    if len(wanted) > MAX_ZIPPED:
        raise HTTPException(413, f"{len(wanted)} photos are more than the {MAX_ZIPPED} of one download")
    first = await query(request, queries.FILE, id=wanted[0])
    if not first:
        raise HTTPException(404, f"photo {wanted[0]} does not exist")
    if len(wanted) == 1:
        headers = attachment(file_name(first[0]["title"], first[0]["format"]))
        return Response(first[0]["data"], media_type="application/octet-stream", headers=headers)

    async def files():
        for id in wanted:
            for row in await query(request, queries.FILE, id=id):
                yield file_name(row["title"], row["format"]), row["data"]

    return StreamingResponse(zipped(files()), media_type="application/zip", headers=attachment("photos.zip"))


# ---------------------------------------------------------------- changes


async def upload(request: Request) -> Response:
    """The body is the file; ?title= is its name, ?date= its date. A file that is already stored is not stored again."""
    data = await body(request, MAX_BYTES)
    title = " ".join(request.query_params.get("title", "").replace("\0", " ").split())[:200] or "Untitled"
    try:
        given = request.query_params.get("date")
        date = given and datetime.datetime.fromisoformat(given).replace(tzinfo=None)
    except ValueError:
        raise HTTPException(400, f"date={given!r} is not a date, such as 2026-05-31T18:04:59") from None
    digest = hashlib.sha256(data).digest()
    shown = await query(request, queries.SAME, digest=digest)
    if not shown:
        try:
            shown = await query(request, queries.INSERT, title=title, data=data, date=date)
        except psycopg.errors.UniqueViolation:  # uploaded in the meantime
            shown = await query(request, queries.SAME, digest=digest)
    return JSONResponse(shown[0], 201 if shown[0]["added"] else 200)


async def delete(request: Request) -> Response:
    deleted = await query(request, queries.DELETE, ids=await ids(request))
    request.app.state.deleted.set()
    return JSONResponse({"ids": [row["id"] for row in deleted], "undo_seconds": UNDO_SECONDS})


async def restore(request: Request) -> Response:
    restored = await query(request, queries.RESTORE, ids=await ids(request))
    return JSONResponse({"ids": [row["id"] for row in restored]})


async def albums(request: Request) -> Response:
    return JSONResponse({"albums": await query(request, queries.ALBUMS)})


async def create_album(request: Request) -> Response:
    [album] = await query(request, queries.CREATE_ALBUM, name=await name(request))
    return JSONResponse(album, 201)


async def album(request: Request) -> Response:
    """PATCH renames an album, DELETE removes it; its photos stay."""
    id = request.path_params["id"]
    if request.method == "PATCH":
        changed = await query(request, queries.RENAME_ALBUM, id=id, name=await name(request))
    else:
        changed = await query(request, queries.REMOVE_ALBUM, id=id)
    if not changed:
        raise HTTPException(404, f"album {id} does not exist")
    return JSONResponse(changed[0])


async def album_photos(request: Request) -> Response:
    """POST adds photos, DELETE takes them out."""
    id = request.path_params["id"]
    statement = queries.FILL_ALBUM if request.method == "POST" else queries.EMPTY_ALBUM
    changed = await query(request, statement, id=id, ids=await ids(request))
    if not changed and not await query(request, queries.ALBUM, id=id):
        raise HTTPException(404, f"album {id} does not exist")
    return JSONResponse({"ids": [row["id"] for row in changed]})


async def index(request: Request) -> Response:
    return Response((STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8")


app = Starlette(
    routes=[
        Route("/", index),
        Route("/api/photos", photos, methods=["GET"]),
        Route("/api/photos", upload, methods=["POST"]),
        Route("/api/photos/delete", delete, methods=["POST"]),
        Route("/api/photos/restore", restore, methods=["POST"]),
        Route("/api/photos/{id:int}", photo),
        Route("/api/months", months),
        Route("/api/groups", groups),
        Route("/api/albums", albums, methods=["GET"]),
        Route("/api/albums", create_album, methods=["POST"]),
        Route("/api/albums/{id:int}", album, methods=["PATCH", "DELETE"]),
        Route("/api/albums/{id:int}/photos", album_photos, methods=["POST", "DELETE"]),
        Route("/photos/{id:int}/{size}.jpg", image),
        Route("/download", download),
        Mount("/static", StaticFiles(directory=STATIC)),
    ],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(Guard)],
    exception_handlers={HTTPException: http_error, psycopg.Error: database_error},
    lifespan=lifespan,
)

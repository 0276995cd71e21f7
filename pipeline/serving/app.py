"""The search page's server: endpoints, bounds and errors. Whoever reaches it can see the indexes' pictures."""

import hashlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from manifests.errors import InputError
from pipeline.serving.engine import SIDES, Busy, Engine, ServedIndex
from pipeline.serving.schema import (
    MOST_BYTES,
    MOST_CHARACTERS,
    MOST_HITS,
    Health,
    Matches,
    Refusal,
    SearchAnswer,
)

PAGE = Path(__file__).parent / "page"
FILES = {"": "index.html", "serve.js": "serve.js", "serve.css": "serve.css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Name = Annotated[str | None, Query(max_length=200, description="of the index; the first by default")]
Text = Annotated[str, Query(min_length=1, max_length=MOST_CHARACTERS)]
Count = Annotated[int, Query(ge=1, le=MOST_HITS)]
Find = Annotated[Literal["captions", "alike"], Query(description="captions for it, or images like it")]
REFUSALS = {status: {"model": Refusal} for status in (404, 413, 422, 503)}


class _Refused(Exception):
    def __init__(self, status: int, error: str, where: str, fix: str):
        self.status, self.body = status, Refusal(error=error, where=where, fix=fix)


def make_app(indexes: Sequence[ServedIndex], *, loopback: bool = True) -> FastAPI:
    """The application that serves some indexes.

    loopback : answer only requests that name this machine as their host. So no other site's page can read the answers
        by a name of its own that leads here.
    """
    engine = Engine(indexes)
    health = Health(version=version("selfalign"), indexes=[index.facts() for index in indexes])
    app = FastAPI(
        title="SelfAlign search",
        version=health.version,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses=REFUSALS,
    )

    def index_of(name: str | None) -> ServedIndex:
        found = engine.index(name)
        if found is None:
            raise _Refused(404, f"no index {name!r} is served", "index", f"use one of {', '.join(engine.indexes)}")
        return found

    @app.get("/api/health")
    async def healthy() -> Health:
        return health

    @app.get("/api/search")
    async def search(text: Text, index: Name = None, count: Count = 12) -> SearchAnswer:
        served = index_of(index)
        return await engine.ask(lambda: served.images(text, count))

    @app.get("/api/regions")
    async def regions(
        text: Text,
        row: Annotated[list[Annotated[int, Query(ge=0)]], Query(min_length=1, max_length=MOST_HITS)],
        index: Name = None,
    ) -> Matches:
        served = index_of(index)
        return Matches(index=served.name, matches=await engine.ask(lambda: served.matches(text, row)))

    @app.get("/api/picture")
    async def picture_of_the_index(
        id: Annotated[str, Query(min_length=1, max_length=MOST_CHARACTERS)],
        find: Find = "captions",
        index: Name = None,
        count: Count = 12,
    ) -> SearchAnswer:
        served = index_of(index)
        return await engine.ask(lambda: served.picture(id, find, count))

    @app.post("/api/picture")
    async def other_picture(
        request: Request, find: Find = "captions", index: Name = None, count: Count = 12
    ) -> SearchAnswer:
        """The body is a picture's file."""
        served, content = index_of(index), await _body(request)
        return await engine.ask(lambda: served.picture(content, find, count))

    @app.get("/pictures/{index}/{row}", response_class=Response)
    async def thumbnail(
        index: str, row: int, request: Request, side: Annotated[int, Query(ge=1, le=SIDES[-1])] = 320
    ) -> Response:
        served = index_of(index)
        if row < 0:
            raise _Refused(404, f"there is no row {row}", "row", "take the rows of an answer")
        try:
            content = await run_in_threadpool(served.thumbnail, row, next(each for each in SIDES if each >= side))
        except InputError as error:
            raise _Refused(404, error.what, error.where, error.fix) from error
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = {"Cache-Control": "private, max-age=86400", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="image/jpeg", headers=headers)

    for path, file in FILES.items():
        app.add_api_route(f"/{path}", _file(PAGE / file), include_in_schema=False)
    _refusals(app)
    _guard(app, loopback)
    return app


def _file(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return send


async def _body(request: Request) -> bytes:
    """A request's body, of which no more is read than may be sent."""
    too_large = _Refused(413, f"the picture has more than {MOST_BYTES:,} bytes", "body", "send a smaller picture")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MOST_BYTES:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise too_large
        parts.append(part)
    if not size:
        raise _Refused(422, "there is no picture", "body", "send a picture's file as the body")
    return b"".join(parts)


def _refusals(app: FastAPI) -> None:
    """Every error is a `Refusal`."""

    def refuse(status: int, body: Refusal) -> JSONResponse:
        return JSONResponse(body.model_dump(), status)

    @app.exception_handler(_Refused)
    async def _refused(_: Request, error: _Refused) -> JSONResponse:
        return refuse(error.status, error.body)

    @app.exception_handler(InputError)
    async def _input(_: Request, error: InputError) -> JSONResponse:
        return refuse(422, Refusal(error=error.what, where=error.where, fix=error.fix))

    @app.exception_handler(Busy)
    async def _busy(_: Request, error: Busy) -> JSONResponse:
        return refuse(503, Refusal(error="too many requests wait", where="server", fix="ask again in a second"))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [(".".join(map(str, one["loc"][1:])) or "request", one["msg"]) for one in error.errors()]
        reason = "; ".join(f"{name}: {message}" for name, message in wrong)
        return refuse(422, Refusal(error=reason, where=wrong[0][0], fix="send what /api/openapi.json states"))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        reason = f"the server failed ({type(error).__name__}: {error})"
        fix = "look at the terminal that `selfalign serve` runs in"
        return refuse(500, Refusal(error=reason, where=where, fix=fix))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        return refuse(error.status_code, Refusal(error=str(error.detail), where=where, fix="see /api/openapi.json"))


def _guard(app: FastAPI, loopback: bool) -> None:
    """Refuse other names of this machine, and say to browsers what the page may do."""

    @app.middleware("http")
    async def _guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname
        except ValueError:
            name = None
        if loopback and (name is None or not is_loopback(name)):
            body = Refusal(
                error=f"this server doesn't answer for host {name!r}",
                where="Host",
                fix="open it as 127.0.0.1 or localhost, or serve it with --host",
            )
            return JSONResponse(body.model_dump(), 403)
        response = await answer(request)
        response.headers.update(HEADERS)
        return response


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. InputError where it is in use or none of this machine's."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(128)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise InputError(
            f"can't listen there ({error.strerror or error})",
            where=f"{host}, port {port}",
            fix="choose another --port, 0 for any that is free, or another --host",
        ) from error
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(sock: socket.socket) -> str:
    """The URL of a socket that listens."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def server(app: FastAPI) -> uvicorn.Server:
    """What serves an application: `server(app).run(sockets=[listen(...)])`."""
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2)
    )

"""The HTTP service of a monitor: takes what exporters post, and shows how the deployment stands to people and to Prometheus."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import get_args
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forensics.errors import ForensicsError
from forensics.monitor import otlp
from forensics.monitor.events import Malformed
from forensics.monitor.history import history, latest
from forensics.monitor.otlp import MOST_BODY, TooLarge
from forensics.monitor.posts import TOO_LARGE, Desk, Form, Post, Taken
from forensics.monitor.state import overview
from forensics.monitor.store import Store
from reports import live, metrics
from reports.words import printable

FORMS: dict[str, Form] = {
    "application/x-protobuf": "protobuf",
    "application/json": "json",
    "application/x-ndjson": "lines",
    "application/jsonl": "lines",
}
MOST_WAITING = 16
"""Posts that are held at once, read or waiting to be counted; each may take twice `MOST_BODY` bytes."""
PATIENCE = 30.0
"""Seconds within which a body has to arrive."""
FRESH = 1.0
"""Seconds for which a page is shown again before the store is asked."""
LISTED_EVERY = 60.0
"""Seconds between two looks at what was set aside, for its file."""
OWN_HOSTS = ("127.0.0.1", "localhost", "[::1]")
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SAFE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Door:
    """Who is let in: by which names the service may be called (all, if none is listed), and the token that has to be shown ("" for none)."""

    hosts: tuple[str, ...]
    token: str = field(repr=False)


class _Refused(Exception):
    """A request that is answered with a status and a sentence of ours."""

    def __init__(self, status: int, why: str, *, again: int = 0) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.again = again
        """Seconds after which it may be sent again; 0 if it had better not."""


class Service:
    """The service of one store. Posts are counted by one thread, one after the other; pages are made beside it."""

    def __init__(self, store: Store, desk: Desk, say: Callable[[str], None]) -> None:
        """Take an open store, the desk of its monitor, and what alarms are told by."""
        self._store = store
        self._desk = desk
        self._say = say
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="monitor")
        self._waiting = 0
        self._kept: dict[object, tuple[float, bytes]] = {}
        self._listed = time.monotonic()
        self._complained = ""
        self.posts = 0
        """Posts that were counted and answered so."""

    def app(self, door: Door) -> ASGIApp:
        """The application, behind its door."""
        pages: dict[str, tuple[Callable[[Request], bytes], str]] = {
            "/": (self._page, "text/html; charset=utf-8"),
            "/status.json": (self._status, "application/json"),
            "/metrics": (self._metrics, metrics.CONTENT_TYPE),
            "/live.css": (partial(self._asset, "live.css"), "text/css; charset=utf-8"),
            "/live.js": (partial(self._asset, "live.js"), "text/javascript; charset=utf-8"),
        }
        routes = [Route(path, partial(self._shown, make, kind), methods=["GET"]) for path, (make, kind) in pages.items()]
        routes += [Route(f"/v1/{path}", partial(self._posted, path), methods=["POST"]) for path in ("traces", "logs", "events")]
        return _Guard(Starlette(routes=routes, lifespan=self._life), door)

    @asynccontextmanager
    async def _life(self, _app: Starlette) -> AsyncIterator[None]:
        yield
        self._writer.shutdown(wait=True)

    async def _posted(self, path: str, request: Request) -> Response:
        """Take a post, and answer once it is counted. Whoever gets no answer, or 503, may send it again."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        protobuf = kind == "application/x-protobuf"
        try:
            form = FORMS.get(kind)
            if form is None or form == ("protobuf" if path == "events" else "lines"):
                raise _Refused(415, f"this type of content is not taken here; one of {', '.join(FORMS)} is")
            taken = await self._taken(path, form, request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it
        except _Refused as error:
            headers = {"Retry-After": str(error.again)} if error.again else {}
            kind = "application/x-protobuf" if protobuf else "application/json"
            return Response(otlp.refused(error.status, error.why, protobuf=protobuf), error.status, headers, media_type=kind)
        self.posts += 1
        if path == "events":
            return Response(b'{"lines": %d}' % taken.lines, media_type="application/json")
        signal: otlp.Signal = "traces" if path == "traces" else "logs"
        return Response(otlp.accepted(signal, taken.rejected, protobuf=protobuf), media_type=kind)

    async def _taken(self, path: str, form: Form, request: Request) -> Taken:
        packed = request.headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("identity", "gzip"):
            raise _Refused(415, "this encoding is not taken; gzip is")
        if self._waiting >= MOST_WAITING:
            raise _Refused(503, "too many posts are waiting", again=1)
        self._waiting += 1
        try:
            body = await _body(request)
            key = request.headers.get("idempotency-key", "")
            work = partial(self._count, path, form, body, packed == "gzip", key)
            return await asyncio.get_running_loop().run_in_executor(self._writer, work)
        finally:
            self._waiting -= 1

    def _count(self, path: str, form: Form, body: bytes | None, packed: bool, key: str) -> Taken:
        """Count a post, in the one thread that writes. `body` is None where it was too large to be read."""
        name = f"POST /v1/{path}"
        try:
            try:
                if body is None:
                    raise TooLarge(f"a post may hold {MOST_BODY} bytes")
                body = otlp.inflated([body]) if packed else body
            except (Malformed, TooLarge) as why:
                self._desk.set_aside(name, str(why) if isinstance(why, Malformed) else TOO_LARGE, body)
                raise
            kind: otlp.Signal | None = next((one for one in get_args(otlp.Signal) if one == path), None)
            taken = self._desk.take(Post(path=kind or "events", form=form, body=body, key=key))
            self._list_aside()
        except Malformed as why:
            raise _Refused(400, str(why)) from None
        except TooLarge as why:
            raise _Refused(413, str(why)) from None
        except ForensicsError as error:
            self._complain(error)
            raise _Refused(503, "the store cannot be written now; send it again", again=10) from error
        self._complained = ""
        for alarm in taken.alarms:
            self._say(f"{alarm.escalation.upper()}: {alarm.finding.claim} {alarm.advice}")
        return taken

    def _list_aside(self) -> None:
        if time.monotonic() - self._listed > LISTED_EVERY:
            self._listed = time.monotonic()
            try:
                self._desk.list_aside()
            except ForensicsError as error:  # the store holds it all the same
                self._complain(error)

    def _complain(self, error: ForensicsError) -> None:
        """Say on standard error what the store refuses, once until it is well again."""
        if str(error) != self._complained:
            self._complained = str(error)
            sys.stderr.write(f"forensics: {printable(str(error))}\n")

    async def _shown(self, make: Callable[[Request], bytes], kind: str, request: Request) -> Response:
        known = (request.url.path, _span(request))
        kept = self._kept.get(known)
        if kept is None or time.monotonic() - kept[0] > FRESH:
            try:
                content = await run_in_threadpool(make, request)
            except ForensicsError as error:
                self._complain(error)
                return PlainTextResponse("the store cannot be read now\n", 503, {"Retry-After": "10"})
            kept = self._kept[known] = (time.monotonic(), content)
        return Response(kept[1], media_type=kind)

    def _page(self, request: Request) -> bytes:
        span = _span(request)
        now = datetime.now(UTC)
        found = overview(self._store, now)
        return live.render(found, history(self._store, found, span=live.SPANS[span][0]), now, span).encode("utf-8", "backslashreplace")

    def _status(self, _: Request) -> bytes:
        return (overview(self._store, datetime.now(UTC)).model_dump_json(by_alias=True) + "\n").encode()

    def _metrics(self, _: Request) -> bytes:
        found = overview(self._store, datetime.now(UTC))
        return metrics.exposition(found, latest(self._store))

    def _asset(self, name: str, _: Request) -> bytes:
        return live.asset("live.css" if name == "live.css" else "live.js").encode()


class _Guard:
    """Turns away whoever may not ask, before anything is read, and puts the headers on that keep a browser from being misled."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SAFE)
            await send(message)

        answer = self._turned_away(Headers(scope=scope), scope["method"])
        await (answer or self._app)(scope, receive, safely)

    def _turned_away(self, headers: Headers, method: str) -> Response | None:
        host = headers.get("host", "")
        if self._door.hosts and _without_port(host) not in self._door.hosts:
            return PlainTextResponse("this service does not go by that name\n", 403)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or (site not in ("none", "same-origin") and not followed):
            return PlainTextResponse("pages of other sites may not ask this service\n", 403)
        if self._door.token and not hmac.compare_digest(_shown_token(headers), self._door.token.encode()):
            # Browsers ask for a password then; as its name anything will do.
            return PlainTextResponse(
                "show the token of this service\n", 401, {"WWW-Authenticate": 'Basic realm="forensics monitor", charset="UTF-8"'}
            )
        return None


def _span(request: Request) -> live.Span:
    asked = request.query_params.get("span")
    return next((name for name in live.SPANS if name == asked), "week")


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() and (name.startswith("[") or ":" not in name) else host.lower()


def _shown_token(headers: Headers) -> bytes:
    """The token that a request shows: as a bearer, or as the password of whatever name."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode()
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


async def _body(request: Request) -> bytes | None:
    """The body as it came; None where it is too large.

    Raises:
        _Refused: It does not come.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length[:20]) > MOST_BODY:
        return None
    held = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                held += chunk
                if len(held) > MOST_BODY:
                    return None
    except TimeoutError:
        raise _Refused(408, "the body of this post did not come") from None
    return bytes(held)

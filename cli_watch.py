"""Verbs of a monitor that runs: serve a store over HTTP, and give its rates and alarms to a collector."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli_monitor import Target

TOKEN_VARIABLE = "FORENSICS_MONITOR_TOKEN"  # noqa: S105 - the name of the variable, which holds no secret itself
HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_HEADERS"
"""Where exporters of OpenTelemetry look for headers to send, for example `Authorization=Bearer%20...`."""
LEAST_TOKEN = 16
"""Characters of a token below which it could be guessed."""
MOST_AT_ONCE = 256
"""Connections; more are turned away with 503."""
PATIENCE = 10
"""Seconds that posts in flight are given when the service is asked to end, and that a collector has for its answer."""


def serve(
    store: Target,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; one that others can reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 4318 is where exporters of OpenTelemetry look, 0 takes a free one.")] = 4318,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help=f"A token that whoever asks has to show (default: of {TOKEN_VARIABLE}); worth it wherever others use the machine."),
    ] = None,
    aside: Annotated[
        Path | None,
        typer.Option("--aside", metavar="FILE", help="Where what cannot be read is listed (default: STORE.aside.jsonl)."),
    ] = None,
) -> None:  # fmt: skip
    """Take what exporters post (OTLP/HTTP, JSON lines), and show a live page and Prometheus metrics, until interrupted.

    POST /v1/traces and /v1/logs take OTLP in protobuf and JSON, POST /v1/events any format of `ingest`; each is answered once it is kept.
    GET / is the page, /metrics is for Prometheus, /status.json is `status --json`. There is no TLS: put a proxy before it where it leaves the machine.
    """
    from forensics.errors import BadInput
    from reports.words import printable

    token = _token(token_file)
    if not _is_loopback(host) and not token:
        raise BadInput(
            f"others can reach {printable(host)}, and nothing would keep them out", where="--host", hint=f"give --token-file FILE, or set {TOKEN_VARIABLE}"
        )  # fmt: skip
    try:
        import uvicorn

        from cli_serve import OWN_HOSTS, Door, Service
    except ModuleNotFoundError as error:
        raise BadInput(
            f"serving needs a library that is not installed: {error.name}", where="forensics monitor serve", hint="pip install 'model-forensics[serve]'"
        ) from error  # fmt: skip
    from forensics.monitor.ingest import Monitor
    from forensics.monitor.posts import Desk
    from forensics.monitor.store import open_store

    beside = aside or (None if "://" in store else Path(f"{store}.aside.jsonl"))
    with open_store(store) as opened, _listening(host, port) as door:
        desk = Desk(Monitor(opened, time.time), beside)
        service = Service(opened, desk, lambda words: typer.echo(printable(words)))
        hosts = (*OWN_HOSTS, _as_written(host)) if _is_loopback(host) else ()
        settings = uvicorn.Config(
            service.app(Door(hosts=hosts, token=token)),
            log_config=None, access_log=False, server_header=False, http="h11", ws="none", limit_concurrency=MOST_AT_ONCE, timeout_graceful_shutdown=PATIENCE,
        )  # fmt: skip
        typer.echo(printable(f"Serving {opened.where} at http://{_as_written(host)}:{door.getsockname()[1]}/; Ctrl-C ends it."))
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # containers are stopped so
        try:
            uvicorn.Server(settings).run(sockets=[door])
        except KeyboardInterrupt:
            typer.echo(f"Ended in order. {service.posts} posts were counted, and all that was acknowledged is in the store.")
        finally:
            signal.signal(signal.SIGTERM, before)
            desk.list_aside()


def evaluations(
    store: Target,
    to: Annotated[str, typer.Option("--to", metavar="URL", help=f"A collector to post them to, for example http://localhost:4318 (its /v1/logs), with the headers in {HEADERS_VARIABLE}.")] = "",
) -> None:  # fmt: skip
    """Write rates and alarms as OpenTelemetry's `gen_ai.evaluation.result` events, in OTLP JSON, a document a line; or post them."""
    import json

    from forensics import __version__
    from forensics.monitor.state import overview
    from forensics.monitor.store import open_store
    from reports.evaluations import evaluations as documents

    if to:
        _refuse_strange(to)
    now = datetime.now(UTC)
    with open_store(store) as opened:
        found = list(documents(overview(opened, now), now, __version__))
    if to:
        _post(to, [row for one in found for row in one["resourceLogs"]])
        typer.echo(f"{len(found)} evaluations were taken.")
        return
    for one in found:
        sys.stdout.write(json.dumps(one) + "\n")


VERBS = (serve, evaluations)


def _token(file: Path | None) -> str:
    """The token of the service; "" where there is none. It is never shown.

    Raises:
        BadInput: The file cannot be read, or what it holds is no token.
    """
    from forensics.errors import BadInput

    where = str(file) if file is not None else TOKEN_VARIABLE
    try:
        token = (file.read_text(encoding="utf-8") if file is not None else os.environ.get(TOKEN_VARIABLE, "")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("the token cannot be read", where=where, hint="check the path and its permissions") from error
    if file is None and not token:
        return ""
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise BadInput(
            f"a token has at least {LEAST_TOKEN} printable ASCII characters and no space",
            where=where,
            hint="make one: openssl rand -hex 32",
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _as_written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listening(host: str, port: int) -> socket.socket:
    from forensics.errors import BadInput

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BadInput(
            f"this address cannot be listened on: {error.strerror or 'it is not known'}", where=f"--host {host} --port {port}", hint="give another --port"
        ) from error  # fmt: skip


def _refuse_strange(url: str) -> None:
    from urllib.parse import urlsplit

    from forensics.errors import BadInput

    try:
        part = urlsplit(url)
        good = part.scheme in ("http", "https") and bool(part.hostname) and part.port != 0
    except ValueError:
        good = False
    if not good:
        raise BadInput("this is not the address of a collector", where="--to", hint="for example http://localhost:4318")


def _post(to: str, resources: list[dict[str, object]]) -> None:
    """Post documents to a collector, all at once.

    Raises:
        BadInput: It refuses them.
        ToolFailed: It cannot be reached, or failed.
    """
    from urllib.parse import unquote

    import httpx

    from forensics.errors import BadInput, ToolFailed

    url = to if to.rstrip("/").endswith("/v1/logs") else to.rstrip("/") + "/v1/logs"
    pairs = [pair.partition("=") for pair in os.environ.get(HEADERS_VARIABLE, "").split(",")]
    headers = {unquote(name.strip()): unquote(value.strip()) for name, _, value in pairs if name.strip()}
    try:
        answer = httpx.post(url, json={"resourceLogs": resources}, headers=headers, timeout=PATIENCE)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError) as error:
        raise ToolFailed(
            f"the collector cannot be reached ({type(error).__name__})", where="--to", hint="check that it runs and takes OTLP over HTTP"
        ) from error
    if answer.status_code >= 500 or answer.status_code == 429:
        raise ToolFailed(f"the collector answered {answer.status_code}", where="--to", hint="run the same command again later")
    if not answer.is_success:
        raise BadInput(
            f"the collector refused them ({answer.status_code})",
            where="--to",
            hint=f"check the address, and what it wants in {HEADERS_VARIABLE}",
        )

"""Serves the page, usually on the loopback: only to those who ask for it by this machine's name or an address.

Everything but marks is read-only.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flamingo_eval.core.errors import FlamingoEvalError, UserError
from flamingo_eval.core.reading import parse_json
from flamingo_eval.core.schema import typed
from flamingo_eval.report.viewer.payload import Mark, encode
from flamingo_eval.report.viewer.views import PAGE, NoSuchAnswerError, Views, page_file

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
          "svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg"}  # fmt: skip
_LONGEST_PATH = 300
_LONGEST_MARK = 20_000
"""Bytes of a request that makes a mark, at most."""


def listen(host: str, port: int | None, usual: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: the address to listen on.
        port: the port that was asked for; None for the usual one, or any other if that is in use.
        usual: the usual port.

    Raises:
        UserError: the port is in use or may not be used, or there is no such address.
    """
    try:
        family, _, _, _, _ = socket.getaddrinfo(host, port or usual, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: there is no such address: {error}") from error
    for wanted in [port] if port is not None else [usual, 0]:
        own = socket.socket(family, socket.SOCK_STREAM)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((host, wanted))
            own.listen(64)
            return own
        except (OSError, OverflowError) as error:
            own.close()
            reason = error
    text = getattr(reason, "strerror", None) or reason
    raise UserError(
        f"port {port if port is not None else usual} of {host} can't be used: {text}; choose another --port"
    )


def application(views: Views, host: str) -> ASGIApp:
    """The server.

    Args:
        views: the runs.
        host: the address that it listens on, as the user named it.
    """
    return _Guard(Starlette(routes=_routes(views)), host)


def _routes(views: Views) -> list[Route]:
    async def page(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in PAGE:
            return _plain(404, "there is no such page")
        return Response(page_file(name), media_type=_KINDS[name.rpartition(".")[2]])

    def asked(answer: Callable[..., msgspec.Struct]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            try:
                found = await run_in_threadpool(lambda: encode(answer(**request.path_params)))
            except NoSuchAnswerError:
                return _plain(404, "there is no such answer")
            except FlamingoEvalError as error:
                return _plain(409, str(error))
            return Response(found, media_type="application/json")

        return respond

    async def image(request: Request) -> Response:
        try:
            found = await run_in_threadpool(views.images.read, request.path_params["name"])
        except FlamingoEvalError as error:
            return _plain(409, str(error))
        if found is None:
            return _plain(404, "no plan of these runs names such an image")
        return Response(found[1], media_type=_KINDS[found[0]])

    async def mark(request: Request) -> Response:
        return await _marked(views, request)

    place = "{run:int}/{trial:int}/{position:int}"
    return [
        Route("/", page),
        Route("/data/state", asked(views.state)),
        Route("/data/rows/{run:int}/{chunk:int}", asked(views.columns)),
        Route(f"/data/detail/{place}", asked(views.detail)),
        Route(f"/data/explain/{place}", asked(views.explanation)),
        Route("/images/{name}", image),
        Route("/marks/{run:int}", mark, methods=["POST"]),
        Route("/{name}", page),
    ]


async def _marked(views: Views, request: Request) -> Response:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return _plain(415, "a mark is JSON")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_MARK:
            return _plain(413, "a mark is not as long as this")
    try:
        made = typed(parse_json(body, "the mark"), Mark, "the mark")
        kept = await run_in_threadpool(views.mark, request.path_params["run"], made)
    except NoSuchAnswerError:
        return _plain(404, "there is no such run")
    except FlamingoEvalError as error:
        return _plain(400, str(error))
    return Response(encode(kept), media_type="application/json")


def _plain(status: int, text: str) -> Response:
    return Response(json.dumps({"error": text}), status_code=status, media_type="application/json")


class _Guard:
    """Refuses requests that come from another site's page in the same browser, or under a name that is not its own.

    A page elsewhere can make a browser send requests here: under a name of its own that leads to the loopback
    (``Host``), or from its own scripts and images (``Origin``, ``Sec-Fetch-Site``).
    """

    def __init__(self, inner: ASGIApp, host: str) -> None:
        self._inner = inner
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        problem = self._problem(scope["method"], given)
        if problem is not None or len(scope["path"]) > _LONGEST_PATH:
            refused = _plain(404, "there is no such page") if problem is None else _plain(403, problem)
            await _with_headers(refused)(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                more = [(n.encode(), v.encode()) for n, v in _HEADERS.items() if n.encode() not in known]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._inner(scope, receive, send_with_headers)

    def _problem(self, method: str, given: Sequence[tuple[str, str]]) -> str | None:
        headers = dict(given)
        host, origins = headers.get("host", ""), [value for name, value in given if name == "origin"]
        if not self._is_own(host) or sum(name == "host" for name, _ in given) != 1:
            return "this server answers to its own name only"
        other = "this server answers to its own page only"
        if any(origin != f"http://{host}" for origin in origins):
            return other
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            top = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if not (top and method in ("GET", "HEAD")):  # a link on another page may lead here
                return other
        return other if method not in ("GET", "HEAD") and not origins else None

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this machine: by its name, or by an address, which other pages can't fake."""
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?", host)
        if found is None:
            return False
        try:
            ipaddress.ip_address(found[1].strip("[]"))
        except ValueError:
            return found[1].lower() in self._names
        return True


def _with_headers(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers[name] = value
    return response

"""What surrounds every request: its id, its measures, and the limit of its body."""

import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import STATUS, BodyTooLargeError
from service.http.problems import answer, request_id_of
from service.metrics import Metrics

HEADER = "X-Request-ID"
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIdMiddleware:
    """Uses the caller's X-Request-ID if its form is valid, else draws one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        request_id = _choose(Headers(scope=scope).get(HEADER, ""))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_named(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_named)


def _choose(offered: str) -> str:
    return offered if _ACCEPTED.fullmatch(offered) else secrets.token_hex(8)


class RequestMetricsMiddleware:
    """The route is known once the router has run, which is before the first byte of the response."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._observe(scope, str(message["status"]), time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_counted)

    def _observe(self, scope: Scope, status: str, seconds: float) -> None:
        route = str(getattr(scope.get("route"), "path", "unmatched"))
        self._metrics.requests.labels(scope["method"], route, status).inc()
        self._metrics.request_s.labels(route).observe(seconds)


class BodyLimitMiddleware:
    """Refuses bodies over `limit` bytes, whether they announce their length or not.

    Args:
        upload_limit: for bodies with pictures, which do not stay in memory.
    """

    def __init__(self, app: ASGIApp, limit: int, upload_limit: int) -> None:
        self._app = app
        self._limit = limit
        self._upload_limit = upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        is_upload = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self._upload_limit if is_upload else self._limit
        if _announced_length(headers) > limit:
            return await _refuse(limit, scope, receive, send)
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # Only this type passes through the framework's reading of bodies unchanged.
                raise HTTPException(STATUS[BodyTooLargeError][0], f"a body may have {limit} bytes")
            return message

        await self._app(scope, receive_counted, send)


async def _refuse(limit: int, scope: Scope, receive: Receive, send: Send) -> None:
    error = BodyTooLargeError(f"a body may have {limit} bytes, this one announces more")
    # What follows the headers is not read, so the connection cannot be used again.
    error.headers["Connection"] = "close"
    await answer(request_id_of(Request(scope)), error)(scope, receive, send)


def _announced_length(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0

"""What surrounds every request: its id, its measures, the limit of its body, and who may send it."""

import re
import secrets
import time
from typing import Final
from urllib.parse import unquote, urlsplit

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import STATUS, AmbiguousLengthError, BodyTooLargeError
from service.http import sites
from service.http.bodies import BodyPaceMiddleware, announced_length, is_upload
from service.http.problems import REQUEST_ID, answer
from service.http.shedding import SheddingMiddleware
from service.logs import SCOPE
from service.metrics import Metrics
from service.settings import ServiceSettings

# Anything else may be invented, and each method would be a series of its own.
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_SAME_METHOD: Final = 307  # of the router, which redirects to the path that it has
_ACCEPTED_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def install(
    app: FastAPI, metrics: Metrics, settings: ServiceSettings, *, body_limit: int, upload_limit: int
) -> None:
    """Surround an app, limits of bodies in bytes; the last one added is the outermost."""
    app.add_middleware(RelativeRedirectMiddleware)
    app.add_middleware(
        BodyPaceMiddleware,
        metrics=metrics,
        receive_s=settings.receive_timeout_s,
        upload_bytes=settings.max_upload_bytes_at_once,
    )
    sites.install(app, settings)
    app.add_middleware(BodyLimitMiddleware, limit=body_limit, upload_limit=upload_limit)
    app.add_middleware(RequestMetricsMiddleware, metrics=metrics)
    app.add_middleware(SheddingMiddleware, limit=settings.max_requests, metrics=metrics)
    app.add_middleware(RootPathMiddleware, root_path=settings.root_path)
    app.add_middleware(
        CorrelationIdMiddleware,
        header_name=REQUEST_ID,
        update_request_header=False,
        generator=lambda: secrets.token_hex(8),
        validator=lambda offered: _ACCEPTED_ID.fullmatch(offered) is not None,
    )


class RootPathMiddleware:
    """Tells the app below which path it is served, whether or not the proxy in front takes it off the path."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root_path and scope["type"] != "lifespan":
            scope["root_path"] = self._root_path
            if not f"{scope['path']}/".startswith(f"{self._root_path}/"):
                scope["path"] = self._root_path + scope["path"]
        await self._app(scope, receive, send)


class RelativeRedirectMiddleware:
    """Names a path that lacks its slash, or has one too many, relative to itself: a proxy may serve it below another."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_relative(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == _SAME_METHOD:
                headers = MutableHeaders(scope=message)
                to = urlsplit(headers.get("location", ""))
                name = to.path.rstrip("/").rpartition("/")[2]
                if unquote(to.path).rstrip("/") == scope["path"].rstrip("/"):
                    path = f"{name}/" if to.path.endswith("/") else f"../{name}"
                    headers["location"] = f"./{path}{to.query and f'?{to.query}'}"
            await send(message)

        await self._app(scope, receive, send_relative)


class RequestMetricsMiddleware:
    """Counts and times requests by route, not by path, so that job ids create no series.

    The route is known once the router has run, which is before the first byte of the response.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        SCOPE.set(scope)
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._observe(scope, str(message["status"]), time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_counted)

    def _observe(self, scope: Scope, status: str, seconds: float) -> None:
        route = scope["route"].path if "route" in scope else "unmatched"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
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
        if "content-length" in headers and "transfer-encoding" in headers:
            return await _refuse_both_lengths(scope, receive, send)
        limit = self._upload_limit if is_upload(headers) else self._limit
        if announced_length(headers) > limit:
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
    detail = f"a body may have {limit} bytes, this one announces more"
    # What follows the headers is not read, so the connection cannot be used again.
    error = BodyTooLargeError(detail, headers={"Connection": "close"})
    await answer(scope, error)(scope, receive, send)


async def _refuse_both_lengths(scope: Scope, receive: Receive, send: Send) -> None:
    """A proxy in front may go by the other of the two, and take the rest for a request (RFC 9112, 6.3)."""
    detail = "Content-Length and Transfer-Encoding exclude each other"
    error = AmbiguousLengthError(detail, headers={"Connection": "close"})
    await answer(scope, error)(scope, receive, send)

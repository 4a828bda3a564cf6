"""What surrounds every request: its id, its measures, and the limit of its body."""

import re
import secrets
import time
from typing import Final

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import STATUS, BodyTooLargeError
from service.http.problems import REQUEST_ID, answer
from service.http.shedding import SheddingMiddleware
from service.metrics import Metrics

_ACCEPTED_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def install(
    app: FastAPI, metrics: Metrics, *, body_limit: int, upload_limit: int, request_limit: int
) -> None:
    """Surround an app, limits of bodies in bytes; the last one added is the outermost."""
    app.add_middleware(BodyLimitMiddleware, limit=body_limit, upload_limit=upload_limit)
    app.add_middleware(RequestMetricsMiddleware, metrics=metrics)
    app.add_middleware(SheddingMiddleware, limit=request_limit, metrics=metrics)
    app.add_middleware(
        CorrelationIdMiddleware,
        header_name=REQUEST_ID,
        update_request_header=False,
        generator=lambda: secrets.token_hex(8),
        validator=lambda offered: _ACCEPTED_ID.fullmatch(offered) is not None,
    )


class RequestMetricsMiddleware:
    """Counts and times requests by route, not by path, so that job ids create no series.

    The route is known once the router has run, which is before the first byte of the response.
    """

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
        route = scope["route"].path if "route" in scope else "unmatched"
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
    detail = f"a body may have {limit} bytes, this one announces more"
    # What follows the headers is not read, so the connection cannot be used again.
    error = BodyTooLargeError(detail, headers={"Connection": "close"})
    await answer(scope, error)(scope, receive, send)


def _announced_length(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0

"""Limits the size of request bodies."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import STATUS, BodyTooLargeError
from service.problems import answer
from service.request_id import request_id_of


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

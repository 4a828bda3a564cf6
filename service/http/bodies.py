"""Bodies of requests: how slowly they may come, and how much of them may be here at once."""

import time
from dataclasses import dataclass, field
from typing import Final

from anyio import fail_after
from prometheus_client import Gauge
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import STATUS, BodyTooLargeError, BodyTooSlowError, UnavailableError
from service.http.problems import answer
from service.metrics import Metrics

_LEAST_RATE: Final = 16 * 1024  # bytes a second, after the first seconds: 128 kbit/s, as of a weak phone
_MOST_JSON_BYTES: Final = 64 << 20  # of all bodies that are held in memory
_MOST_KEYLESS_BYTES: Final = 4096  # a key that signs in has 85 characters
_RETRY_AFTER_S: Final = 10
_BUSY: Final = "too much is being uploaded at the moment"
_HELD: Final = "chorale.held"


@dataclass(slots=True)
class _Budget:
    """Bytes that all requests of a kind may hold together."""

    limit: int
    shown: Gauge
    used: int = 0

    def change(self, size: int) -> None:
        self.used += size
        self.shown.set(self.used)


@dataclass(slots=True)
class _Held:
    """Bytes that one request holds; without a budget they are too few to count."""

    budget: _Budget | None
    received: int = 0
    began: float = field(default_factory=time.monotonic)
    is_answered: bool = False

    def fits(self, size: int) -> bool:
        return self.budget is None or self.budget.used + size <= self.budget.limit

    def add(self, size: int) -> None:
        self.received += size
        if self.budget:
            self.budget.change(size)

    def release(self) -> None:
        self.add(-self.received)


class BodyPaceMiddleware:
    """Ends requests whose body stalls or comes too slowly, and sheds those that there is no space for.

    Args:
        receive_s: the longest pause, and the time before the average rate counts.
        upload_bytes: of the pictures of all requests, which lie on disk.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, receive_s: float, upload_bytes: int) -> None:
        self._app = app
        self._receive_s = receive_s
        self._json = _Budget(_MOST_JSON_BYTES, metrics.bodies_held.labels("json"))
        self._uploads = _Budget(upload_bytes, metrics.bodies_held.labels("upload"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return await self._app(scope, receive, send)
        held = _Held(self._uploads if is_upload(headers) else self._json)
        if not held.fits(announced_length(headers)):
            # What follows the headers is not read, so the connection cannot be used again.
            busy = UnavailableError(_BUSY, retry_after_s=_RETRY_AFTER_S)
            busy.headers["Connection"] = "close"
            return await answer(scope, busy)(scope, receive, send)
        scope[_HELD] = held

        async def send_noting(message: Message) -> None:
            held.is_answered = True
            await send(message)

        try:
            await self._app(scope, self._pace(receive, held), send_noting)
        finally:
            held.release()

    def _pace(self, receive: Receive, held: _Held) -> Receive:
        whole = False

        async def receive_paced() -> Message:
            nonlocal whole
            if whole:
                return await receive()  # the client may stay as long as its answer takes
            message = await self._receive_soon(receive, held)
            size = len(message.get("body", b""))
            if not held.fits(size):
                raise _end(STATUS[UnavailableError][0], _BUSY, {"Retry-After": str(_RETRY_AFTER_S)})
            held.add(size)
            whole = not message.get("more_body", False)
            return message

        return receive_paced

    async def _receive_soon(self, receive: Receive, held: _Held) -> Message:
        spent_s = time.monotonic() - held.began
        allowed_s = self._receive_s + held.received / _LEAST_RATE - spent_s
        try:
            with fail_after(max(0.0, min(self._receive_s, allowed_s))):
                return await receive()
        except TimeoutError:
            if held.is_answered:  # nobody reads the body, and no other answer can be given
                return {"type": "http.disconnect"}
            least = f"{_LEAST_RATE // 1024} KiB/s without pauses of {self._receive_s:g} s"
            why = f"{held.received} bytes of the body came in {spent_s:.0f} s; it must come at {least}"
            raise _end(STATUS[BodyTooSlowError][0], why, {}) from None


def release_body(scope: Scope) -> None:
    """Count the body of this request no longer: it was worked off, though the answer may take a while."""
    if held := scope.get(_HELD):
        held.release()


def bound_keyless(scope: Scope, receive: Receive) -> Receive:
    """How the body of a request without a key is received: it is small, and takes no space of those who have one."""
    if held := scope.get(_HELD):
        held.budget = None
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _MOST_KEYLESS_BYTES:
            why = f"without an API key a body may have {_MOST_KEYLESS_BYTES} bytes"
            raise HTTPException(STATUS[BodyTooLargeError][0], why)
        return message

    return receive_bounded


def is_upload(headers: Headers) -> bool:
    """Whether the body is a form with pictures, which do not stay in memory."""
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


def announced_length(headers: Headers) -> int:
    """Bytes of the body; 0 where only its end will tell."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def _end(status: int, detail: str, headers: dict[str, str]) -> HTTPException:
    """Only this type passes through the framework's reading of bodies unchanged."""
    return HTTPException(status, detail, headers | {"Connection": "close"})

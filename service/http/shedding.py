"""Refuses at once what could only wait: a process answers some hundred requests a second, and no more by queueing them."""

import asyncio
import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import UnavailableError
from service.http.problems import answer
from service.metrics import Metrics

# How an operator, or what restarts the process, sees that it lives.
_ALWAYS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_RETRY_AFTER_S: Final = 1
_LOG_EVERY_S: Final = 10.0
# After a restart thousands of viewers come back at once: they wait here, not for connections to Redis.
_HANDSHAKES: Final = 32
SLOT: Final = "chorale.slot"
log = logging.getLogger(__name__)


class Slot:
    """The place of one request among those that are worked on."""

    def __init__(self, shedding: "SheddingMiddleware") -> None:
        self._shedding = shedding
        self._held = False
        self.take()

    def take(self) -> None:
        self._shedding.busy += not self._held
        self._held = True

    def leave(self) -> None:
        self._shedding.busy -= self._held
        self._held = False

    @contextmanager
    def lent(self) -> Generator[None]:
        """While the request waits for its client or for a job, another may be worked on."""
        held = self._held
        self.leave()
        try:
            yield
        finally:
            if held:
                self.take()


class SheddingMiddleware:
    """Lets `limit` requests be worked on, each until its answer begins, and a few WebSocket handshakes in turn."""

    def __init__(self, app: ASGIApp, limit: int, metrics: Metrics) -> None:
        self._app = app
        self._limit = limit
        self._metrics = metrics
        self._handshakes = asyncio.Semaphore(_HANDSHAKES)
        self._refused = 0
        self._silent_until = 0.0
        self.busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._shake_hands(scope, receive, send)
        elif scope["type"] != "http" or scope["path"] in _ALWAYS:
            await self._app(scope, receive, send)
        elif self.busy >= self._limit:
            await self._refuse(scope, receive, send)
        else:
            await self._work(scope, receive, send)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        slot = scope[SLOT] = Slot(self)

        async def receive_waiting() -> Message:
            with slot.lent():
                return await receive()

        async def send_leaving(message: Message) -> None:
            slot.leave()
            await send(message)

        try:
            await self._app(scope, receive_waiting, send_leaving)
        finally:
            slot.leave()

    async def _shake_hands(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handshakes.acquire()
        shaking = True

        def end() -> None:
            nonlocal shaking
            if shaking:
                self._handshakes.release()
            shaking = False

        async def send_ending(message: Message) -> None:
            end()
            await send(message)

        try:
            await self._app(scope, receive, send_ending)
        finally:
            end()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.requests_shed.inc()
        self._refused += 1
        if time.monotonic() >= self._silent_until:
            log.warning("%d requests refused: %d are being answered already", self._refused, self._limit)
            self._refused, self._silent_until = 0, time.monotonic() + _LOG_EVERY_S
        detail = f"{self._limit} requests are being answered already, no more are taken at once"
        await answer(scope, UnavailableError(detail, retry_after_s=_RETRY_AFTER_S))(scope, receive, send)

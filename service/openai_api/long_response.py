"""Answers that may take hours: a connection on which nothing comes is ended, by proxies after 60 s."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

from anyio import CancelScope
from starlette.responses import StreamingResponse
from starlette.types import Send

SILENT_PINGS: Final = 3  # at 15 s each; OpenAI's clients wait 600 s
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_PATIENCE_S: Final = 1.0
Body = Callable[[], AsyncGenerator[bytes]]


class BreakOffError(Exception):
    """The answer cannot be completed; its client must not take it for the whole."""


class LongResponse(StreamingResponse):
    """Ends the connection where the body breaks off.

    Args:
        work: ends with the answer, or with its client.
    """

    def __init__(
        self,
        body: AsyncGenerator[bytes],
        headers: dict[str, str],
        media_type: str,
        work: asyncio.Future[Body] | None = None,
    ) -> None:
        super().__init__(body, headers=_HEADERS | headers, media_type=media_type)
        self._body = body
        self._work = work

    async def stream_response(self, send: Send) -> None:
        try:
            async with aclosing(self._body):
                await super().stream_response(send)
        except BreakOffError:
            return
        finally:
            if self._work:
                await _end(self._work)


async def answer_when_done(
    work: Awaitable[Body],
    ping_interval_s: float,
    headers: dict[str, str],
    describe: Callable[[Exception], bytes],
) -> LongResponse:
    """A JSON answer. What fails soon has a status of its own; what takes long is begun with blanks.

    Args:
        describe: the body in place of an answer that has failed after it was begun; clients repeat their request then.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=SILENT_PINGS * ping_interval_s)
    except BaseException:
        await _end(task)
        raise
    body = task.result()() if task.done() else _blank_first(task, ping_interval_s, describe)
    return LongResponse(body, headers, "application/json", task)


async def _end(task: asyncio.Future[Body]) -> None:
    """A cancellation may get lost where the task waits for the queue server: of 200 in reads every 5 ms, 63 did."""
    with CancelScope(shield=True):
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_PATIENCE_S)
    if not task.cancelled():
        task.exception()  # nobody is left to be told


async def _blank_first(
    task: asyncio.Future[Body], ping_interval_s: float, describe: Callable[[Exception], bytes]
) -> AsyncGenerator[bytes]:
    """Blanks before a value are JSON (RFC 8259, 2)."""
    try:
        yield b" "
        while not (await asyncio.wait({task}, timeout=ping_interval_s))[0]:
            yield b" "
        async for piece in task.result()():
            yield piece
    except BreakOffError:
        raise
    except Exception as error:
        yield describe(error)
        raise BreakOffError from error

"""Job events, as server-sent events or over a WebSocket."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated, Final

import anyio
from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from redis.exceptions import RedisError
from starlette.responses import StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from api_schemas.job import TERMINAL
from api_schemas.keys import Ticket, draw_secret
from service.dependencies import After, LoadedJob, ServicesDep, require_seq
from service.errors import InvalidRequestError, JobNotFoundError, JobUnreadableError
from service.keys.middleware import get_credential, get_holder
from service.messages import EventMessage, Idle, Message, PreviewMessage, Restarting, order
from service.openapi import problems

_DONE: Final = 1000
_RESTARTING: Final = 1012
_TRY_LATER: Final = 1013
_RECONNECT_MS: Final = 1000
_SSE_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}

router = APIRouter(tags=["events"])
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="Sent by browsers when they reconnect; takes precedence over `after`.",
    ),
]


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "Each event's `id` is its `seq`. The stream ends after the terminal event.",
            "content": {"text/event-stream": {"schema": _SSE_EVENT}},
        },
        204: {"description": "The job has ended and all its events were received: do not reconnect."},
        **problems(JobNotFoundError, JobUnreadableError, InvalidRequestError),
    },
)
async def stream_events(
    request: Request,
    job: LoadedJob,
    services: ServicesDep,
    after: After = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Stored events after the given one, then live events, until the job ends."""
    after = require_seq("Last-Event-ID", last_event_id) or after
    if after and job.status in TERMINAL and order(after) >= order(job.seq):
        return Response(status_code=204)
    # Buffering proxies would delay the events.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if request.method == "HEAD":
        return StreamingResponse(iter(()), headers=headers, media_type="text/event-stream")
    messages = services.events.follow(job, after, previews=False, holder=get_holder(request))
    return EventSourceResponse(_encode_all(messages), headers=headers)


@router.websocket("/v1/jobs/{job_id}/ws")
async def follow_job(
    websocket: WebSocket, job: LoadedJob, services: ServicesDep, after: After = None
) -> None:
    """The same events as JSON text, and previews as binary messages (see api_schemas/wire.py)."""
    await websocket.accept()
    messages = services.events.follow(job, after, previews=True, holder=get_holder(websocket))
    async with anyio.create_task_group() as group:
        group.start_soon(_serve, websocket, messages, services.settings.send_timeout_s, group.cancel_scope)
        await _await_disconnect(websocket)
        group.cancel_scope.cancel()


@router.post(
    "/v1/jobs/{job_id}/ticket",
    response_model=Ticket,
    responses=problems(JobNotFoundError, JobUnreadableError),
)
async def write_ticket(request: Request, job: LoadedJob, services: ServicesDep) -> Ticket:
    """A ticket that opens one of this job's streams, once and within 30 s, for what cannot send headers: `WebSocket` and `EventSource` in pages of other sites. When the stream is lost, ask for another, and go on with `after`."""
    credential = get_credential(request)
    ticket = await services.keys.write_ticket(credential, job.id) if credential else draw_secret()
    return Ticket(ticket=ticket)


async def _encode_all(messages: AsyncGenerator[Message]) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=_RECONNECT_MS)
    # If Redis is unreachable the stream ends: browsers reconnect by themselves, with their last id.
    with suppress(RedisError, OSError):
        async with aclosing(messages):
            async for message in messages:
                encoded = _encode(message)
                if encoded:
                    yield encoded


def _encode(message: Message) -> bytes:
    match message:
        case EventMessage(type=kind, seq=seq, text=text):
            return format_sse_event(data_str=text, event=kind, id=seq or None)
        case Idle():
            return format_sse_event(comment="still here")
        case PreviewMessage() | Restarting():
            return b""


async def _await_disconnect(websocket: WebSocket) -> None:
    """Messages of clients are read and dropped."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _serve(
    websocket: WebSocket, messages: AsyncGenerator[Message], timeout_s: float, scope: anyio.CancelScope
) -> None:
    """A task of its own, so that what wakes 2,000 of them does not resume all frames of the middleware each time."""
    # A stalled connection does not accept a close frame either, until its client reads again.
    with suppress(WebSocketDisconnect, TimeoutError):
        code = await _send_all(websocket, messages, timeout_s)
        async with asyncio.timeout(timeout_s):
            await websocket.close(code)
    scope.cancel()


async def _send_all(websocket: WebSocket, messages: AsyncGenerator[Message], timeout_s: float) -> int:
    """Send until the job ends; returns the close code."""
    code = _DONE
    now = asyncio.get_running_loop().time
    try:
        # One timeout, moved for each message: one for each would take 2,000 viewers a part of a core.
        async with asyncio.timeout(None) as deadline, aclosing(messages):
            async for message in messages:
                deadline.reschedule(now() + timeout_s)
                await _send(websocket, message)
                deadline.reschedule(None)
                code = _RESTARTING if isinstance(message, Restarting) else _DONE
    except (TimeoutError, RedisError, OSError):
        return _TRY_LATER
    return code


async def _send(websocket: WebSocket, message: Message) -> None:
    match message:
        case EventMessage(text=text):
            await websocket.send_text(text)
        case PreviewMessage(data=data):
            await websocket.send_bytes(data)
        case (
            Idle() | Restarting()
        ):  # the server pings by itself, and the close code tells clients to reconnect
            pass

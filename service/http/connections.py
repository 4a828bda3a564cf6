"""Limits for connections: how many there are, how long one may take to send a request or to read an answer, and how much
of a request is not its body."""

import asyncio
import logging
import resource
from collections import OrderedDict
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.heads import HeadSize, HeadTooLargeError, write_refusal
from service.metrics import Metrics

_OWN_DESCRIPTORS: Final = 200  # of Redis, the log, the store and decoders
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
_LINGER_S: Final = 1.0  # what still comes is dropped, so that the client gets to read why
_log = logging.getLogger(__name__)


def raise_descriptor_limit(connections: int) -> None:
    """Take all file descriptors that this process may have; warn where they do not suffice."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS gives less than it says
        _log.warning("the limit of file descriptors stays at %d", soft)
    if fit_connections(connections) < connections:
        _log.warning(
            "%d file descriptors allow %d connections in place of %d: raise the limit (ulimit -n, LimitNOFILE)",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            fit_connections(connections),
            connections,
        )


def fit_connections(connections: int) -> int:
    """As many of them as the limit of file descriptors allows: each second one may also have a file open."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        connections
        if descriptors < 0
        else max(1, min(connections, (descriptors - _OWN_DESCRIPTORS) * 2 // 3))
    )


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the connections of one server share.

    Args:
        connections: the most that are open; WebSockets are among them.
        receive_s: how long the head of a request may take.
        send_s: how long a client may read nothing of its answer.
    """

    connections: int
    receive_s: float
    send_s: float
    metrics: Metrics
    waiting: "OrderedDict[BoundedProtocol, None]" = field(
        default_factory=lambda: OrderedDict[BoundedProtocol, None](), init=False
    )


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for ever for the head of a request and for a reader, and holds any head.

    When there are too many connections, the one that has been without a request for longest gives way: a
    flood of idle connections closes its own.
    """

    limits: ConnectionLimits

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._head = HeadSize()
        self._is_refused = False
        is_free = len(self.connections) < self.limits.connections or self._free_one()
        super().connection_made(transport)
        if is_free:
            self._await_head()
        else:
            self._count("full")
            transport.write(_FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._head.unparsed += len(data)
        super().data_received(data)
        if excess := self._head.find_excess():
            self._refuse(excess)
        elif self._is_waiting():
            self._await_head()
        else:
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """The parser has stopped; a head that is too large is told as such."""
        if self._head.find_excess() is None:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._head.begin()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head.add_line(url)
        self._require_small_head()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also of trailers, which come after the body."""
        self._head.add_field(name, value)
        self._require_small_head()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head.begin()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head.begin()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head.begin()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_waiting():
            self.limits.waiting[self] = None
        if self.transport.get_write_buffer_size():
            self._watch_reader(self.transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def _require_small_head(self) -> None:
        """
        Raises:
            HeadTooLargeError: which stops the parser; nothing of the request gets further.
        """
        if self._head.find_excess():
            raise HeadTooLargeError

    def _refuse(self, status: HTTPStatus) -> None:
        """Say so and close, unless the answer to another request, or to this one, would be cut by it."""
        self._is_refused = True
        self._stop_waiting()
        self._count("large_head")
        if self._end_cycle():
            self.transport.write(write_refusal(status, self.server_state.default_headers))
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.abort)
        else:
            self.transport.abort()

    def _end_cycle(self) -> bool:
        """Let no request be answered any more; False if one was being answered, or could be."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            return True
        cycle.disconnected = True
        cycle.message_event.set()
        return cycle.more_body and not cycle.response_started

    def _is_waiting(self) -> bool:
        """Whether no request is being answered; a WebSocket has left the set of this protocol's connections."""
        is_open = self in self.connections and not self.transport.is_closing()
        return is_open and (self.cycle is None or self.cycle.response_complete)  # pyright: ignore[reportUnnecessaryComparison]

    def _await_head(self) -> None:
        """The time begins with the connection, or with the first byte of a later request."""
        self.limits.waiting[self] = None
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.receive_s, self._close, "slow_head")

    def _stop_waiting(self) -> None:
        self.limits.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_reader(self, left: int) -> None:
        """Look again in `send_s`, when fewer than `left` bytes should be in the buffer."""
        self._stop_watching()
        self._read_timer = self.loop.call_later(self.limits.send_s, self._check_reader, left)

    def _stop_watching(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _check_reader(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self._close("slow_reader")
        elif left:
            self._watch_reader(left)

    def _free_one(self) -> bool:
        if not self.limits.waiting:
            return False
        oldest, _ = self.limits.waiting.popitem(last=False)
        oldest._close("evicted")
        return True

    def _close(self, reason: str) -> None:
        self._count(reason)
        self.transport.abort()

    def _count(self, reason: str) -> None:
        self.limits.metrics.connections_closed.labels(reason).inc()


def bind_limits(given: ConnectionLimits) -> type[BoundedProtocol]:
    """The protocol of one server."""

    class Bound(BoundedProtocol):
        limits = given

    return Bound

"""Clients that cost little: calls at a fixed rate whatever the answers take, and sockets that only note arrivals."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import quantiles
from urllib.parse import urlsplit

_MOST_CONNECTIONS = 1000


@dataclass
class Tally:
    """What came back.

    Args:
        latencies_ms: by status, from when a call was due to its last byte; 0 is a connection that broke.
        bodies: of the answers of the 2xx family.
        waits: values of Retry-After.
    """

    latencies_ms: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    bodies: list[bytes] = field(default_factory=list[bytes])
    waits: Counter[str] = field(default_factory=Counter[str])

    def percentile(self, percent: int, status: int | None = None) -> float:
        """Of all calls, or of those with one status."""
        chosen = self.latencies_ms.values() if status is None else [self.latencies_ms.get(status, [])]
        values = [each for group in chosen for each in group]
        return quantiles(values, n=100)[percent - 1] if len(values) > 1 else float("nan")

    def counts(self) -> dict[int, int]:
        return {status: len(each) for status, each in sorted(self.latencies_ms.items())}


async def call_steadily(url: str, rate: float, seconds: float, request: Callable[[int], bytes]) -> Tally:
    """Send `request(number)` at each multiple of 1/rate s, on a free connection or a new one."""
    tally, free = Tally(), asyncio.LifoQueue["_Connection"]()
    limit = asyncio.Semaphore(_MOST_CONNECTIONS)

    async def call(number: int, due: float) -> None:
        async with limit:
            connection = free.get_nowait() if not free.empty() else await _Connection.open(url)
            status = await connection.exchange(request(number), tally)
            if status:
                free.put_nowait(connection)
        tally.latencies_ms.setdefault(status, []).append((time.perf_counter() - due) * 1000)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.create_task(call(number, due))
    while not free.empty():
        free.get_nowait().writer.close()
    return tally


def get(path: str, key: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{_bearer(key)}\r\n".encode()


def post(path: str, body: bytes, key: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{_bearer(key)}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _bearer(key: str) -> str:
    return f"Authorization: Bearer {key}\r\n" if key else ""


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> "_Connection":
        address = urlsplit(url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def exchange(self, request: bytes, tally: Tally) -> int:
        """The status of the answer; 0 if the connection broke."""
        try:
            self.writer.write(request)
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await self.reader.readexactly(int(fields.get("content-length", "0")))
        except (OSError, asyncio.IncompleteReadError):
            return 0
        status = int(head.split(" ", 2)[1])
        if status < 300:
            tally.bodies.append(body)
        elif "retry-after" in fields:
            tally.waits[fields["retry-after"]] += 1
        return status


class Watcher(asyncio.Protocol):
    """A WebSocket that notes when bytes came, and reads them only when all is over."""

    def __init__(self, path: str, key: str = "") -> None:
        self._path, self._key = path, key
        self.arrivals: list[tuple[float, bytes]] = []
        self.first_text = asyncio.Event()
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        head = (
            f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        )
        rest = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        transport.write((head + _bearer(self._key) + rest).encode())

    def data_received(self, data: bytes) -> None:
        self.arrivals.append((time.time(), data))
        if b'"job.queued"' in data:
            self.first_text.set()
        if data[0] == 0x89:  # a ping, alone; its answer under a mask of zeros
            self._transport.write(bytes((0x8A, 0x80 | data[1])) + bytes(4) + data[2 : 2 + data[1]])

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def stop_reading(self) -> None:
        self._transport.pause_reading()

    def read_on(self) -> None:
        self._transport.resume_reading()

    def break_off(self) -> None:
        """Without a word, as a network that is gone."""
        self._transport.abort()

    def texts(self) -> Iterator[tuple[float, bytes]]:
        """Each text message and when its last byte came."""
        pending, skipped = b"", False
        for at, data in self.arrivals:
            pending += data
            if not skipped:
                head, mark, rest = pending.partition(b"\r\n\r\n")
                pending, skipped = (rest, True) if mark else (head, False)
            while skipped and (frame := _cut_frame(pending)):
                opcode, payload, pending = frame
                if opcode == 1:
                    yield at, payload


def _cut_frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    """(opcode, payload, what follows) of an unmasked frame; None while it is not whole."""
    if len(data) < 2:
        return None
    extra = {126: 2, 127: 8}.get(data[1], 0)
    length = int.from_bytes(data[2 : 2 + extra]) if extra else data[1]
    end = 2 + extra + length
    return (data[0] & 15, data[2 + extra : end], data[end:]) if len(data) >= end else None


def pin(cores: set[int]) -> Callable[[], None]:
    """For the beginning of a process: it runs on these cores only."""
    return lambda: os.sched_setaffinity(0, cores)

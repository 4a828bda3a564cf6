"""The blocking client, generated from async_client.py; see there."""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from math import inf
from pathlib import Path
from types import TracebackType

import httpx
from httpx_sse import EventSource
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from api_schemas.answers import JobPage, JobView, Readiness
from api_schemas.catalog import ModelCard
from api_schemas.derived import ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.generation import GenerationRequest, PicturePart
from api_schemas.job import TERMINAL, JobStatus
from api_schemas.webhook import Delivery, Webhook, WebhookView
from chorale import calls
from chorale.calls import Answer, Call
from chorale.errors import NoConnectionError, NoWebSocketError, TimedOutError, UnavailableError
from chorale.part_file import PartFile
from chorale.protocol import (
    DEFAULT_URL,
    Preview,
    Update,
    after_parameters,
    check,
    finished,
    is_last,
    is_refused,
    job_path,
    key_headers,
    live_url,
    read_previews,
    result_of,
    server_url,
)
from chorale.proxies import Transport, find_proxy
from chorale.pyramid import Pyramid, PyramidTile, for_each
from chorale.reconnect import Following, Reconnect

# The server sends something at least every 15 s, a keep-alive if there is no event.
_TIMEOUT = httpx.Timeout(30, read=60)
_LOOK_S = 0.25
# How long closing a live connection may wait for previews that nobody reads.
_LEAVE_S = 1
_TRANSIENT = (httpx.TransportError, UnavailableError)


class Client:
    """A client of one Chorale server.

    Args:
        api_key: where the server needs one; if not given, CHORALE_API_KEY.

    >>> with Client("http://127.0.0.1:8000") as chorale:
    ...     job = chorale.create(GenerationRequest(prompt="glowing orange lava", seamless="both"))
    ...     chorale.wait(job.id)
    ...     chorale.download(job.id, Path("lava.png"))
    """

    def __init__(self, url: str = DEFAULT_URL, *, api_key: str | None = None) -> None:
        self.url = server_url(url)
        # Not sent to another host to which an answer redirects, such as that of the object store.
        self._headers = key_headers(api_key)
        self._http = httpx.Client(
            base_url=self.url, timeout=_TIMEOUT, transport=Transport(), headers=self._headers
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def create(
        self,
        request: GenerationRequest,
        *,
        pictures: Mapping[PicturePart, Path] | None = None,
        idempotency_key: str | None = None,
    ) -> JobView:
        """Create a job. The same key and request return the same job again.

        Args:
            pictures: by the parts that the request needs, such as `source_image`: PNG, JPEG or WebP.

        >>> job = chorale.create(GenerationRequest(prompt="moss", width_px=4096, height_px=4096))

        Raises:
            InvalidRequestError: a value is out of its limits.
            UnavailableError: the queue is full, or no worker serves the model.
        """
        return self._do(calls.create_job(request, pictures, idempotency_key))

    def reroll(self, job_id: str, asked: RerollRequest, *, idempotency_key: str | None = None) -> JobView:
        """Inpaint a part of a finished job's picture; every pixel outside of it stays.

        >>> region = SourceMask(rectangle=RectangleShape(left_px=0, top_px=0, width_px=512, height_px=512))
        >>> child = chorale.reroll(job.id, RerollRequest(region=region, prompt="a red door"))
        """
        return self._do(calls.derive_job(job_id, asked, idempotency_key))

    def extend(self, job_id: str, asked: ExtendRequest, *, idempotency_key: str | None = None) -> JobView:
        """Make more picture around a finished job's.

        >>> child = chorale.extend(job.id, ExtendRequest(left_px=1024, right_px=1024))
        """
        return self._do(calls.derive_job(job_id, asked, idempotency_key))

    def vary(self, job_id: str, asked: VariationsRequest, *, idempotency_key: str | None = None) -> JobPage:
        """Make pictures from noise beside a job's own.

        >>> children = chorale.vary(job.id, VariationsRequest(count=4))
        """
        return self._do(calls.vary_job(job_id, asked, idempotency_key))

    def get(self, job_id: str) -> JobView:
        """The current state of a job.

        Raises:
            NotFoundError: no such job.
        """
        return self._do(calls.get_job(job_id))

    def list(self, *, status: JobStatus | None = None, limit: int = 20, cursor: str | None = None) -> JobPage:
        """One page of jobs, newest first; `page.next` is the cursor of the next one.

        >>> page = chorale.list(status="processing")
        >>> [job.id for job in page.data]
        """
        return self._do(calls.list_jobs(status, limit, cursor))

    def cancel(self, job_id: str) -> JobView:
        """Stop a job; it ends within one step. Canceling twice changes nothing."""
        return self._do(calls.cancel_job(job_id))

    def set_webhook(self, webhook: Webhook) -> WebhookView:
        """Name an endpoint that is told of the ends of all jobs of this API key.

        >>> view = chorale.set_webhook(Webhook(url="https://receiver.example/hook"))
        >>> view.secret  # for `standardwebhooks`; it is told this once
        """
        return self._do(calls.set_webhook(webhook))

    def deliveries(self, job_id: str) -> tuple[Delivery, ...]:
        """What webhooks were told of a job, and what they answered."""
        return self._do(calls.list_deliveries(job_id))

    def models(self) -> tuple[ModelCard, ...]:
        """The models that are served, with their limits."""
        return self._do(calls.list_models())

    def readiness(self) -> Readiness:
        """Whether a job posted now would run."""
        return self._do(calls.ask_readiness())

    def events(self, job_id: str, *, after: str = "") -> Iterator[Update]:
        """All events of a job, from its beginning or after a `seq`, until it ends.

        Reconnects after a lost connection, without gaps or duplicates.

        >>> for event in chorale.events(job.id):
        ...     print(event.seq, event.type)

        Raises:
            NoConnectionError: the server was away for too long.
        """
        follow = Following(self.url, after)
        while True:
            try:
                parameters = after_parameters(follow.after)
                with self._open(job_path(job_id, "events"), params=parameters) as response:
                    if response.status_code == HTTPStatus.NO_CONTENT:
                        return  # all events were received
                    for message in EventSource(response).iter_sse():
                        if not message.data:
                            continue  # a retry time or a comment, which browsers do not dispatch either
                        update = follow.read(message.data)
                        yield update
                        if is_last(update):
                            return
                follow.fail()
            except _TRANSIENT as error:
                follow.fail(error)
            time.sleep(follow.delay_s)

    def live(self, job_id: str, *, after: str = "") -> Iterator[Update | Preview]:
        """The same as `events`, with previews of the canvas between them.

        After a lost connection, the newest preview of each cell is sent.

        Raises:
            NoWebSocketError: something between refuses WebSockets; `events` may get through.
        """
        follow = Following(self.url, after)
        proxy = find_proxy(self.url)
        while True:
            try:
                address = live_url(self.url, job_id, follow.after)
                with connect(
                    address,
                    additional_headers=self._headers,
                    proxy=proxy,
                    max_size=None,
                    close_timeout=_LEAVE_S,
                ) as socket:
                    for message in socket:
                        if isinstance(message, bytes):
                            follow.succeed()
                            yield from read_previews(message)
                            continue
                        update = follow.read(message)
                        yield update
                        if is_last(update):
                            return
                follow.fail()
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
                with suppress(NoConnectionError, UnavailableError):  # a server that starts again
                    self.get(job_id)  # raises if there is no such job
                if is_refused(error):
                    raise NoWebSocketError(self.url, str(error)) from error
                follow.fail(error)
            time.sleep(follow.delay_s)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> JobView:
        """Wait for the job's picture.

        Raises:
            JobEndedError: it ended without one.
            TimedOutError: it still runs after `timeout_s`.
        """
        deadline = time.monotonic() + (inf if timeout_s is None else timeout_s)
        reconnect = Reconnect(self.url)
        while True:
            try:
                job = self.get(job_id)
                reconnect.succeed()
                if job.status in TERMINAL:
                    return finished(job)
            except (NoConnectionError, UnavailableError) as error:
                reconnect.fail(error)
            if time.monotonic() > deadline:
                raise TimedOutError(f"job {job_id} did not end within {timeout_s} s")
            time.sleep(max(_LOOK_S, reconnect.delay_s))

    def download(self, job_id: str, path: Path) -> Path:
        """Stream the picture into a file, checked against the job's checksum.

        An interrupted download is resumed, also by a later call after a crash.

        Raises:
            JobEndedError: the job has no picture.
            ConflictError: the job has no picture yet.
        """
        part = PartFile(path, result_of(self.get(job_id)))
        reconnect = Reconnect(self.url)
        while not part.is_complete:
            try:
                with self._open(job_path(job_id, "image"), headers=part.headers()) as response:
                    part.prepare(response)
                    for chunk in response.iter_raw():
                        part.append(chunk)
                        reconnect.succeed()
            except _TRANSIENT as error:
                reconnect.fail(error)
                time.sleep(reconnect.delay_s)
        return part.finish()

    def download_pyramid(self, job_id: str, path: Path) -> Path:
        """Fetch the deep zoom: a descriptor such as `lava.dzi`, and its tiles in `lava_files/`."""
        pyramid = Pyramid.parse(self._do(calls.fetch("image.dzi", job_id=job_id)))

        def fetch(tile: PyramidTile) -> None:
            place = ("tiles", str(tile.level), f"{tile.column}_{tile.row}")
            image = self._do(calls.fetch(*place, job_id=job_id))
            pyramid.write_tile(path, tile, image)

        for_each(fetch, pyramid.tiles())
        return pyramid.write_descriptor(path)

    def _do(self, call: Call[Answer]) -> Answer:
        try:
            response = self._http.request(
                call.method,
                call.path,
                params=call.params,
                headers=call.headers,
                content=call.content,
                files=call.files,
            )
        except httpx.TransportError as error:
            raise NoConnectionError(self.url, str(error) or type(error).__name__) from error
        return call.read(response)

    @contextmanager
    def _open(
        self, path: str, *, params: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> Generator[httpx.Response]:
        with self._http.stream(
            "GET", path, params=params, headers=headers, follow_redirects=True
        ) as response:
            if response.is_error:
                response.read()
            yield check(response)

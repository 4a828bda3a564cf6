"""The one writer of a running job's log."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from api_schemas import preview_frames, wire
from api_schemas.events import (
    BandFinished,
    BandFinishedData,
    CanceledData,
    DelayedData,
    DurableEvent,
    ExpiredData,
    FailedData,
    JobDelayed,
    JobPreempted,
    JobResumed,
    JobStarted,
    PhaseStartedData,
    PreemptedData,
    ResumedData,
    StartedData,
    StepCompleted,
    StepCompletedData,
    SucceededData,
    TilePreviewed,
    WarnedData,
    durable_event,
)
from api_schemas.job import TERMINAL, Job, apply
from api_schemas.stored import UnreadableRecordError, read_event
from worker.errors import FencedError
from worker.patience import is_refusal, is_wrong_type
from worker.process.protocol import PreviewCell

DurableData = (
    StartedData
    | ResumedData
    | PhaseStartedData
    | StepCompletedData
    | BandFinishedData
    | DelayedData
    | PreemptedData
    | WarnedData
    | SucceededData
    | FailedData
    | CanceledData
    | ExpiredData
)
_Entries = list[tuple[bytes, dict[bytes, bytes]]]
_TYPES: dict[type[DurableData], str] = {
    StartedData: "job.started",
    ResumedData: "job.resumed",
    PhaseStartedData: "phase.started",
    StepCompletedData: "step.completed",
    BandFinishedData: "band.finished",
    DelayedData: "job.delayed",
    PreemptedData: "job.preempted",
    WarnedData: "job.warned",
    SucceededData: "job.succeeded",
    FailedData: "job.failed",
    CanceledData: "job.canceled",
    ExpiredData: "job.expired",
}
_log = logging.getLogger(__name__)
_PREVIEWS_TTL_S = 3600  # long after the picture itself can be seen


class EventLog:
    """Appends events of one job, each only if the log is as it was last read.

    `token` names the attempt: once a newer attempt has installed its own, appends are refused.
    """

    def __init__(self, redis: "Redis", job_id: str) -> None:
        self._redis = redis
        self._append = redis.register_script(wire.APPEND_EVENT)
        self.job_id = job_id
        self.token = ""
        self.job = self._read()

    def claim(self, data: StartedData | ResumedData) -> None:
        """Begin an attempt and make it the job's owner.

        Raises:
            FencedError: the job has ended.
        """
        self._write(data, holder="", install=data.execution)
        self.token = data.execution

    def append(self, data: DurableData) -> None:
        """Append an event of the attempt that owns the job.

        Raises:
            FencedError: a newer attempt owns the job, or it has ended.
        """
        self._write(data, holder=self.token, install="")

    def read_events(self) -> list[DurableEvent]:
        """The log as it stands; its beginning may have been trimmed, and what cannot be read is left out."""
        try:
            entries = cast(_Entries, self._redis.xrange(wire.events_key(self.job_id)))
        except ResponseError as error:
            _log.warning("the log of job %s cannot be read: %s", self.job_id, error)
            return []
        return [event for seq, fields in entries if (event := self._read_event(seq, fields)) is not None]

    def _read_event(self, seq: bytes, fields: dict[bytes, bytes]) -> DurableEvent | None:
        try:
            return read_event(fields.get(b"event", b""), fields.get(b"version"))
        except UnreadableRecordError as error:
            _log.warning("event %s of job %s is skipped: %s", seq.decode(), self.job_id, error)
            return None

    def read_cancel(self) -> str | None:
        """What is asked for, if the job is to stop: `wire.EXPIRED`, or something else if it is to be canceled."""
        try:
            asked = cast(bytes | None, self._redis.get(wire.cancel_key(self.job_id)))
        except ResponseError:  # whatever is there, somebody has asked
            return ""
        return None if asked is None else asked.decode(errors="replace")

    def publish_previews(self, cells: Iterable[PreviewCell]) -> None:
        """Send previews to live readers, and keep them for late ones."""
        with self._redis.pipeline(transaction=False) as pipeline:  # pyright: ignore[reportUnknownMemberType]
            for cell in cells:
                event = TilePreviewed(
                    job_id=self.job_id, attempt=self.job.attempt, ts=time.time(), data=cell.data
                )
                frame = preview_frames.pack_preview(event, cell.jpeg)
                place = f"{cell.data.left_px},{cell.data.top_px}"
                pipeline.xadd(
                    wire.LIVE_KEY,
                    {"job": self.job_id, "frame": frame},
                    maxlen=wire.LIVE_MAXLEN,
                    approximate=True,
                )
                pipeline.hset(wire.previews_key(self.job_id), place, frame)
            pipeline.expire(wire.previews_key(self.job_id), _PREVIEWS_TTL_S)
            answers = pipeline.execute(raise_on_error=False)
        self._drop_unusable_previews(answers)

    def _drop_unusable_previews(self, answers: Sequence[object]) -> None:
        """Previews are not worth a job: what lies where they belong is deleted; the next append clears the stream, and waits
        where the server has no space."""
        for error in answers:
            if is_wrong_type(error):
                self._redis.delete(wire.previews_key(self.job_id))
            elif isinstance(error, RedisError) and not is_refusal(error):
                raise error

    def _write(self, data: DurableData, holder: str, install: str) -> None:
        while True:
            if self.job.status in TERMINAL:
                raise FencedError(f"job {self.job_id} is {self.job.status}")
            event = self._wrap(data)
            changed = apply(self.job, event)
            answer = self._send(changed, event, holder, install)
            if answer == "fenced":
                raise FencedError(f"job {self.job_id} belongs to a newer attempt")
            if answer != "stale":
                self.job = changed.model_copy(update={"seq": answer})
                return
            if self._read_again(event.model_dump_json()):
                return

    def _wrap(self, data: DurableData) -> DurableEvent:
        begins = isinstance(data, StartedData | ResumedData)
        attempt = self.job.attempt + 1 if begins else self.job.attempt
        return durable_event.validate_python(
            {
                "type": _TYPES[type(data)],
                "job_id": self.job_id,
                "attempt": attempt,
                "ts": time.time(),
                "data": data,
            }
        )

    def _send(self, job: Job, event: DurableEvent, holder: str, install: str) -> str:
        keys, arguments = wire.append_event(job, event, after=self.job.seq, holder=holder, install=install)
        return self._append(keys, arguments).decode()

    def _read_again(self, text: str) -> bool:
        """Whether the event was written, though the connection broke before the answer came."""
        self.job = self._read()
        newest = cast(_Entries, self._redis.xrevrange(wire.events_key(self.job_id), count=1))
        return bool(newest) and newest[0][1].get(b"event") == text.encode()

    def _read(self) -> Job:
        """
        Raises:
            FencedError: there is no such job.
            UnreadableRecordError: its record is damaged, or of a later version.
        """
        try:
            record = cast(list[bytes | None], self._redis.hmget(wire.job_key(self.job_id), wire.RECORD))
        except ResponseError as error:
            raise UnreadableRecordError(str(error)) from error
        job = wire.read_job(self.job_id, record)
        if job is None:
            raise FencedError(f"job {self.job_id} has no record")
        return job


def count_fruitless_attempts(events: Iterable[DurableEvent]) -> int:
    """Attempts since the job last made progress, which is a step or band that no attempt reached before.

    Attempts that ended by order (preempted) or waited for a resource (delayed) do not count.
    """
    fruitless, furthest, step = 0, (0, 0), 0
    for event in events:
        match event:
            case JobStarted() | JobResumed():
                fruitless += 1
            case JobPreempted() | JobDelayed():
                fruitless = max(fruitless - 1, 0)
            case StepCompleted():
                step = event.data.step
                fruitless, furthest = _advance(fruitless, furthest, (step, 0))
            case BandFinished():
                # A band is only ever written after the last step.
                fruitless, furthest = _advance(
                    fruitless, furthest, (max(step, furthest[0]), event.data.bands_done)
                )
            case _:
                pass
    return fruitless


def _advance(
    fruitless: int, furthest: tuple[int, int], reached: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    return (0, reached) if reached > furthest else (fruitless, furthest)

"""A stand-in for the worker in tests of the service: tells a job's story through the real script."""

import time
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from redis import Redis

from api_schemas.catalog import Cost, ModelCard
from api_schemas.errors import JobError
from api_schemas.events import (
    CanceledData,
    DurableEvent,
    FailedData,
    JobCanceled,
    JobFailed,
    JobQueued,
    JobStarted,
    JobSucceeded,
    JobWarned,
    PhaseStarted,
    PhaseStartedData,
    QueuedData,
    Result,
    StartedData,
    StepCompleted,
    StepCompletedData,
    SucceededData,
    TilePreviewed,
    TilePreviewedData,
    WarnedData,
    durable_event,
)
from api_schemas.generation import ResolvedRequest
from api_schemas.job import Job, apply, begin
from api_schemas.preview_frames import pack_preview
from api_schemas.wire import (
    APPEND_EVENT,
    JOBS_KEY,
    LIVE_KEY,
    LIVE_MAXLEN,
    MODELS_KEY,
    WORKER_KEY_PREFIX,
    WORKERS_KEY,
    append_event,
    events_key,
    job_key,
    jobs_of_key,
    previews_key,
)

CARD = ModelCard(
    name="glow",
    family="toy",
    native_size_px=256,
    alignment_px=64,
    latent_channels=4,
    vae_scale=8,
    default_steps=12,
    max_steps=100,
    default_guidance_scale=5.0,
    tile_seconds=0.01,
    is_default=True,
)


@dataclass
class Story:
    """Writes events as the worker does: read, fold, compare and set, again if another came first."""

    redis: Redis
    execution: str = "one"
    live_key: str = LIVE_KEY
    stale: int = field(default=0, init=False)

    def publish(self, card: ModelCard = CARD, worker: str = "w1") -> None:
        """Announce a model and a worker that is alive."""
        self.redis.hset(MODELS_KEY, card.name, card.model_dump_json())
        self.redis.set(WORKER_KEY_PREFIX + worker, card.name, ex=600)
        self.redis.sadd(WORKERS_KEY, worker)

    def queue(self, job_id: str, *, key_id: str = "", **choices: object) -> str:
        """Record a job without the service."""
        request = ResolvedRequest.model_validate(
            {"model": CARD.name, "steps": 12, "guidance_scale": 5.0, "seed": 7} | choices
        )
        cost = Cost(tiles=1, megapixel_steps=1.0, vram_gib=0.1)
        data = QueuedData(request=request, cost=cost, key_id=key_id)
        event = JobQueued(job_id=job_id, attempt=0, ts=time.time(), data=data)
        for index in {JOBS_KEY, jobs_of_key(key_id)}:
            self.redis.zadd(index, {job_id: event.ts})
        return self._write("", begin(event), event, token="", install="")

    def start(self, job_id: str, attempt: int = 1) -> str:
        data = StartedData(worker="w1", execution=self.execution)
        event = JobStarted(job_id=job_id, attempt=attempt, ts=time.time(), data=data)
        return self.append(event, install=self.execution)

    def start_if_queued(self, job_id: str) -> bool:
        """As a worker that took the job from the queue: start it unless it was canceled meanwhile."""
        while (job := self.job(job_id)).status == "queued":
            data = StartedData(worker="w1", execution=self.execution)
            event = JobStarted(job_id=job_id, attempt=1, ts=time.time(), data=data)
            if self._write(job.seq, apply(job, event), event, self.execution, self.execution) != "stale":
                return True
        return False

    def stage(self, job_id: str, total: int = 12) -> str:
        data = PhaseStartedData(phase="denoise", total=total)
        return self.append(PhaseStarted(job_id=job_id, attempt=1, ts=time.time(), data=data))

    def step(self, job_id: str, step: int, steps: int = 12) -> str:
        data = StepCompletedData(step=step, steps=steps, tiles=4, eta_s=float(steps - step))
        return self.append(StepCompleted(job_id=job_id, attempt=1, ts=time.time(), data=data))

    def warn(self, job_id: str, message: str) -> str:
        data = WarnedData(code="batch_halved", message=message)
        return self.append(JobWarned(job_id=job_id, attempt=1, ts=time.time(), data=data))

    def succeed(self, job_id: str, result: Result, ago_s: float = 0.0) -> str:
        ts = time.time() - ago_s
        return self.append(JobSucceeded(job_id=job_id, attempt=1, ts=ts, data=SucceededData(result=result)))

    def fail(self, job_id: str) -> str:
        error = JobError(code="engine_failed", message="no luck", retryable=False)
        return self.append(JobFailed(job_id=job_id, attempt=1, ts=time.time(), data=FailedData(error=error)))

    def cancel(self, job_id: str) -> str:
        """End a job that no worker has, as the service does."""
        job = self.job(job_id)
        event = JobCanceled(job_id=job_id, attempt=0, ts=time.time(), data=CanceledData(reason="by hand"))
        return self._write(job.seq, apply(job, event), event, token="", install="")

    def append(self, event: DurableEvent, install: str = "") -> str:
        """Append one event; answers its seq."""
        answer = self.try_append(event, install)
        assert answer != "fenced", f"{event.type} of an execution that does not own the job"
        return answer

    def try_append(self, event: DurableEvent, install: str = "") -> str:
        """The same, but answers `fenced` where another execution owns the job."""
        while True:
            job = self.job(event.job_id)
            answer = self._write(job.seq, apply(job, event), event, self.execution, install)
            if answer != "stale":
                return answer
            self.stale += 1

    def preview(self, job_id: str, left_px: int, top_px: int, level: int, side_px: int = 512) -> bytes:
        """Publish a one-coloured cell; answers its frame."""
        data = TilePreviewedData(
            left_px=left_px, top_px=top_px, width_px=side_px, height_px=side_px, phase="denoise", step=1
        )
        pixels = np.full((side_px // 8, side_px // 8, 3), level, np.uint8)
        frame = pack_preview(
            TilePreviewed(job_id=job_id, attempt=1, ts=time.time(), data=data),
            simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB"),
        )
        self.redis.hset(previews_key(job_id), f"{left_px},{top_px}", frame)
        self.redis.xadd(LIVE_KEY, {"job": job_id, "frame": frame}, maxlen=LIVE_MAXLEN)
        return frame

    def job(self, job_id: str) -> Job:
        """The stored state."""
        body, seq = self.redis.hmget(job_key(job_id), ["job", "seq"])
        return Job.model_validate_json(body).model_copy(update={"seq": seq.decode()})

    def log(self, job_id: str) -> list[DurableEvent]:
        """The stored events, with their ids."""
        return [
            durable_event.validate_json(fields[b"event"]).model_copy(update={"seq": seq.decode()})
            for seq, fields in self.redis.xrange(events_key(job_id))
        ]

    def _write(self, seq: str, job: Job, event: DurableEvent, token: str, install: str) -> str:
        keys, arguments = append_event(job, event, after=seq, holder=token, install=install)
        keys[2] = self.live_key
        return self.redis.eval(APPEND_EVENT, len(keys), *keys, *arguments).decode()

"""Writes steps and previews as workers do, for viewers to wait for."""

import time
from threading import Thread

from redis import Redis

from api_schemas.events import StepCompleted, StepCompletedData, TilePreviewed, TilePreviewedData
from api_schemas.job import Job, apply
from api_schemas.preview_frames import pack_preview
from api_schemas.wire import APPEND_EVENT, LIVE_KEY, LIVE_MAXLEN, RECORD, append_event, job_key, read_job

PREVIEW_BYTES = 2000


class Writer(Thread):
    """Steps and previews of all jobs, spread over each period, as workers write them."""

    def __init__(self, redis: Redis, ids: list[str], rate: float) -> None:
        super().__init__(daemon=True)
        self._redis = redis
        self._jobs = [self._read(job_id) for job_id in ids]
        self._interval_s = 1 / (rate * len(ids))
        self.done = False

    def run(self) -> None:
        due, step = time.perf_counter(), 0
        while not self.done:
            step += 1
            for number, job in enumerate(self._jobs):
                self._jobs[number] = self._write(job, step)
                due += self._interval_s
                time.sleep(max(0.0, due - time.perf_counter()))

    def _write(self, job: Job, step: int) -> Job:
        self._redis.xadd(LIVE_KEY, {"job": job.id, "frame": _frame(job.id)}, maxlen=LIVE_MAXLEN)
        data = StepCompletedData(step=step, steps=10_000, tiles=1, eta_s=1.0)
        event = StepCompleted(job_id=job.id, attempt=0, ts=time.time(), data=data)
        after = apply(job, event)
        keys, arguments = append_event(after, event, after=job.seq)
        seq = self._redis.eval(APPEND_EVENT, len(keys), *keys, *arguments)
        assert isinstance(seq, bytes)
        return after.model_copy(update={"seq": seq.decode()})

    def _read(self, job_id: str) -> Job:
        job = read_job(job_id, self._redis.hmget(job_key(job_id), RECORD))  # pyright: ignore[reportArgumentType]
        assert job is not None
        return job


def _frame(job_id: str) -> bytes:
    data = TilePreviewedData(left_px=0, top_px=0, width_px=256, height_px=256, phase="denoise", step=1)
    event = TilePreviewed(job_id=job_id, attempt=1, ts=time.time(), data=data)
    return pack_preview(event, bytes(PREVIEW_BYTES))

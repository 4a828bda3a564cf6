"""From a valid request to a recorded and queued job, once."""

import logging
import secrets
import time
from collections.abc import Mapping
from typing import Final

from api_schemas.events import JobQueued, QueuedData
from api_schemas.generation import PicturePart
from api_schemas.job import Job
from service.errors import ConflictError
from service.images.masks import read_masks
from service.images.received import ReceivedPicture
from service.images.uploads import Uploads
from service.job_queue import JobQueue
from service.job_store import JobStore
from service.jobs.admission import Admission
from service.jobs.idempotency import IdempotencyStore
from service.jobs.submission import Submission, require_pictures
from service.metrics import Metrics

_RETRY_S: Final = 1
log = logging.getLogger(__name__)


class Intake:
    """Writes the record first and enqueues second; after a crash in between, the reconciler enqueues."""

    def __init__(
        self,
        admission: Admission,
        idempotency: IdempotencyStore,
        uploads: Uploads,
        jobs: JobStore,
        queue: JobQueue,
        metrics: Metrics,
    ) -> None:
        self._admission = admission
        self._idempotency = idempotency
        self._uploads = uploads
        self._jobs = jobs
        self._queue = queue
        self._metrics = metrics

    async def take(self, submission: Submission, key: str | None) -> Job:
        """The new job, or the one that this Idempotency-Key made before.

        Raises:
            ConflictError: another request with this key is still being taken in.
        """
        job_id = draw_job_id()
        if key is None:
            return await self._create(job_id, submission)
        owner = await self._idempotency.claim(key, submission.fingerprint(), job_id)
        if owner == job_id:
            return await self._create_claimed(job_id, submission, key)
        earlier = await self._jobs.get(owner)
        if earlier is None:
            raise ConflictError(
                "the first request with this Idempotency-Key is still in flight", retry_after_s=_RETRY_S
            )
        await self._idempotency.keep(
            key
        )  # the process that recorded it may have died before it confirmed the key
        return earlier

    async def _create_claimed(self, job_id: str, submission: Submission, key: str) -> Job:
        try:
            job = await self._create(job_id, submission)
        except Exception:
            if await self._jobs.get(job_id) is None:
                await self._idempotency.release(key)
            raise
        await self._idempotency.keep(key)
        return job

    async def _create(self, job_id: str, submission: Submission) -> Job:
        data = await self._admission.admit(submission.request)
        require_pictures(submission)  # only now: no picture is decoded for a request that is rejected anyway
        if submission.files:
            # Before the record: every recorded job has its pictures.
            data = await self._keep_pictures(job_id, submission.files, data)
        job = await self._jobs.create(JobQueued(job_id=job_id, attempt=0, ts=time.time(), data=data))
        await self._queue.enqueue(job_id, job.request.model)
        self._metrics.jobs_created.inc()
        size = job.request.width_px, job.request.height_px
        log.info("job %s queued: model %s, %dx%d px", job_id, job.request.model, *size)
        return job

    async def _keep_pictures(
        self, job_id: str, files: Mapping[PicturePart, ReceivedPicture], data: QueuedData
    ) -> QueuedData:
        """Store the pictures; masks of regions, once they are decoded, also change the cost."""
        async with self._uploads.clean(files) as cleaned:
            masks = read_masks({part: picture.mask for part, picture in cleaned.items()})
            pictures = await self._uploads.keep(job_id, files, cleaned)
        data = data.model_copy(update={"request": data.request.model_copy(update={"pictures": pictures})})
        return await self._admission.recount(data, masks) if masks else data


def draw_job_id() -> str:
    """28 hex digits: the time first, so that ids grow, then 64 random bits, so that none is guessed."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"

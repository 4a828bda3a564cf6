"""From a valid request to a recorded and queued job, once."""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from PIL import Image

from api_schemas.events import JobQueued, QueuedData
from api_schemas.generation import PicturePart
from api_schemas.job import Job
from api_schemas.regions import MaskPart
from api_schemas.source import Size
from service.errors import ConflictError
from service.images.masks import MASK_PARTS, read_masks
from service.images.uploads import CleanPicture, Decoded, Uploads
from service.job_store import JobStore
from service.jobs.admission import Admission
from service.jobs.allowance import Allowance
from service.jobs.dispatcher import Dispatcher
from service.jobs.idempotency import IdempotencyStore
from service.jobs.sources import FoundSource, find_source, settle_source
from service.jobs.submission import Submission, require_pictures
from service.metrics import Metrics
from service.quotas.places import Lack
from service.webhooks.endpoints import Endpoints

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
        dispatcher: Dispatcher,
        webhooks: Endpoints,
        metrics: Metrics,
        allowance: Allowance,
    ) -> None:
        self._allowance = allowance
        self._admission = admission
        self._idempotency = idempotency
        self._uploads = uploads
        self._jobs = jobs
        self._dispatcher = dispatcher
        self._webhooks = webhooks
        self._metrics = metrics

    async def take(self, submission: Submission, key: str | None) -> Job:
        """The new job, or the one that this Idempotency-Key made before.

        Raises:
            ConflictError: another request with this key is still being taken in.
        """
        job_id = draw_job_id()
        if key is None:
            return await self._create(job_id, submission)
        if submission.key_id:  # those of each API key are its own
            key = f"{submission.key_id} {key}"
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

    async def take_all(self, submissions: Sequence[Submission], token: str) -> list[Job]:
        """A job for each of these, which are alike: none, unless the queue has a place for every one.

        Args:
            token: makes the same jobs once.
        """
        await self._admission.expect(submissions[0].request, len(submissions))
        with ExitStack() as opened:
            decoded, count = Decoded(opened), len(submissions)
            alike = [replace(each, places=count - i, decoded=decoded) for i, each in enumerate(submissions)]
            return [await self.take(each, f"variation {i} {token}") for i, each in enumerate(alike)]

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
        webhook = await self._webhooks.accept(submission.request.webhook, submission.key_id)
        data = await self._admit(job_id, submission)
        data = _change_request(data, parent=submission.parent_id)
        data = data.model_copy(update={"key_id": submission.key_id})
        quota = await self._allowance.find_quota(submission, data.cost)
        event = JobQueued(job_id=job_id, attempt=0, ts=time.time(), data=data)
        job = await self._jobs.create(event, webhook and webhook.write(), quota, submission.places)
        if isinstance(job, Lack):
            raise await self._allowance.explain(job, submission, quota, data.request.model)
        await self._dispatcher.enqueue(job)
        self._metrics.jobs_created.inc()
        size = job.request.width_px, job.request.height_px
        log.info("job %s queued: model %s, %dx%d px", job_id, job.request.model, *size)
        return job

    async def _admit(self, job_id: str, submission: Submission) -> QueuedData:
        """Everything that can be refused; the pictures are stored before the record, so that every recorded job has them."""
        request = submission.request
        if request.source is not None and request.source.job is None:
            await self._admission.expect(request)  # its size is the picture's
            require_pictures(submission)
            return await self._admit_with_pictures(job_id, submission)
        source = (
            await find_source(request.source.job, self._jobs, submission.reaches)
            if request.source and request.source.job
            else None
        )
        data = await self._admission.admit(settle_source(request, source.size) if source else request, source)
        submission.check_pixels(data.request)
        require_pictures(submission)  # only now: no picture is decoded for a request that is rejected anyway
        if submission.files or submission.list_inherited():
            return await self._admit_with_pictures(job_id, submission, data, source)
        return data

    async def _admit_with_pictures(
        self,
        job_id: str,
        submission: Submission,
        data: QueuedData | None = None,
        source: FoundSource | None = None,
    ) -> QueuedData:
        """Decode and store the pictures. Masks change the cost, and a source decides everything."""
        await self._allowance.expect(submission)
        parent, inherited = submission.parent, submission.list_inherited()
        async with self._uploads.clean(submission.files, submission.decoded) as cleaned:
            masks = read_masks(_list_masks(cleaned))
            if parent is not None:
                masks |= await self._read_inherited(parent, inherited)
            if data is None:
                source = FoundSource(self._find_size(submission, cleaned))
                data = await self._admission.admit(settle_source(submission.request, source.size), source)
                submission.check_pixels(data.request)
            pictures = await self._uploads.keep(job_id, submission.files, cleaned)
        if parent is not None:
            pictures |= await self._uploads.inherit(job_id, parent, inherited)
        data = _change_request(data, pictures=pictures)
        return await self._admission.recount(data, masks, source) if masks else data

    async def _read_inherited(self, parent: Job, parts: Sequence[PicturePart]) -> dict[MaskPart, Image.Image]:
        """Masks of the parent: only where they are, they cost anything."""
        async with self._uploads.sum_up(parent, [part for part in MASK_PARTS if part in parts]) as cleaned:
            return read_masks(_list_masks(cleaned))

    def _find_size(self, submission: Submission, cleaned: Mapping[PicturePart, CleanPicture]) -> Size:
        """Of the source that was sent, with this request or with its parent's."""
        if "source_image" in cleaned:
            return cleaned["source_image"].size
        assert submission.parent is not None
        sent = submission.parent.request.pictures["source_image"]
        return sent.width_px, sent.height_px


def _list_masks(cleaned: Mapping[PicturePart, CleanPicture]) -> dict[PicturePart, bytes]:
    return {part: picture.mask for part, picture in cleaned.items() if part in MASK_PARTS}


def _change_request(data: QueuedData, **changes: object) -> QueuedData:
    return data.model_copy(update={"request": data.request.model_copy(update=changes)})


def draw_job_id() -> str:
    """28 hex digits: the time first, so that ids grow, then 64 random bits, so that none is guessed."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"

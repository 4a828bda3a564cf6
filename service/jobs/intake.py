"""From a valid request to a recorded and queued job, once."""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from api_schemas.errors import FieldError
from api_schemas.events import JobQueued, QueuedData
from api_schemas.generation import PicturePart
from api_schemas.job import Job
from api_schemas.regions import MaskPart
from api_schemas.source import Size
from service.errors import ConflictError, InvalidRequestError
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
        (job,) = await self._take([_Draft(draw_job_id(), submission, key)])
        return job

    async def take_all(self, submissions: Sequence[Submission], token: str) -> list[Job]:
        """A job for each of these, which are alike: none, unless there is a place for every one.

        Args:
            token: makes the same jobs once.
        """
        ids = sorted(draw_job_id() for _ in submissions)
        with ExitStack() as opened:
            decoded = Decoded(opened)
            alike = [replace(each, decoded=decoded) for each in submissions]
            keys = [f"variation {i} {token}" for i in range(len(alike))]
            return await self._take([_Draft(*each) for each in zip(ids, alike, keys, strict=True)])

    async def _take(self, drafts: Sequence["_Draft"]) -> list[Job]:
        found: dict[str, Job] = {}
        new: list[_Draft] = []
        try:
            for draft in drafts:
                if earlier := await self._find_earlier(draft):
                    found[draft.job_id] = earlier
                else:
                    new.append(draft)
            found |= {job.id: job for job in await self._create(new)}
        except Exception:
            await self._release(new)
            raise
        # Also those of earlier jobs: the process that recorded one may have died before it confirmed the key.
        for draft in drafts:
            if draft.name is not None:
                await self._idempotency.keep(draft.name)
        return [found[draft.job_id] for draft in drafts]

    async def _find_earlier(self, draft: "_Draft") -> Job | None:
        """The job that its Idempotency-Key made before; None: it is this one's from now on."""
        if draft.name is None:
            return None
        owner = await self._idempotency.claim(draft.name, draft.submission.fingerprint(), draft.job_id)
        if owner == draft.job_id:
            return None
        if earlier := await self._jobs.get(owner):
            return earlier
        raise ConflictError(
            "the first request with this Idempotency-Key is still in flight", retry_after_s=_RETRY_S
        )

    async def _release(self, drafts: Sequence["_Draft"]) -> None:
        """The keys of those that were not recorded."""
        named = {draft.job_id: draft.name for draft in drafts if draft.name is not None}
        for name, job in zip(named.values(), await self._jobs.get_many(list(named)), strict=True):
            if job is None:
                await self._idempotency.release(name)

    async def _create(self, drafts: Sequence["_Draft"]) -> list[Job]:
        """All are recorded at once, and none is enqueued before."""
        if not drafts:
            return []
        submissions = [replace(draft.submission, places=len(drafts)) for draft in drafts]
        first, events = submissions[0], list[JobQueued]()
        webhook = await self._webhooks.accept(first.request.webhook, first.key_id)
        for draft, submission in zip(drafts, submissions, strict=True):
            events.append(await self._begin(draft.job_id, submission))
        quota = await self._allowance.find_quota(first, events[0].data.cost)
        jobs = await self._jobs.create_all(events, webhook and webhook.write(), quota)
        if isinstance(jobs, Lack):
            raise await self._allowance.explain(jobs, first, quota, events[0].data.request.model)
        for job in jobs:
            await self._enqueue(job)
        return jobs

    async def _begin(self, job_id: str, submission: Submission) -> JobQueued:
        data = await self._admit(job_id, submission)
        data = _change_request(data, parent=submission.parent_id)
        data = data.model_copy(update={"key_id": submission.key_id})
        await self._allowance.find_quota(submission, data.cost)  # before pictures of the next are stored
        return JobQueued(job_id=job_id, attempt=0, ts=time.time(), data=data)

    async def _enqueue(self, job: Job) -> None:
        await self._dispatcher.enqueue(job)
        self._metrics.jobs_created.inc()
        size = job.request.width_px, job.request.height_px
        log.info("job %s queued: model %s, %dx%d px", job.id, job.request.model, *size)

    async def _admit(self, job_id: str, submission: Submission) -> QueuedData:
        """Everything that can be refused; the pictures are stored before the record, so that every recorded job has them."""
        request, asks = submission.request, (submission.key_id, submission.places)
        if request.source is not None and request.source.job is None:
            await self._admission.expect(request, *asks)  # its size is the picture's
            require_pictures(submission)
            return await self._admit_with_pictures(job_id, submission)
        source = (
            await find_source(request.source.job, self._jobs, submission.reaches)
            if request.source and request.source.job
            else None
        )
        settled = settle_source(request, source.size) if source else request
        data = await self._admission.admit(settled, *asks, source)
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
            _check_mask(submission, cleaned)
            masks = read_masks(_list_masks(cleaned))
            if parent is not None:
                masks |= await self._read_inherited(parent, inherited)
            if data is None:
                source = FoundSource(self._find_size(submission, cleaned))
                settled = settle_source(submission.request, source.size)
                data = await self._admission.admit(settled, submission.key_id, submission.places, source)
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


@dataclass(frozen=True, slots=True)
class _Draft:
    """A job that may come to be.

    Args:
        key: the Idempotency-Key of its request; None if that has none.
    """

    job_id: str
    submission: Submission
    key: str | None

    @property
    def name(self) -> str | None:
        """The key among all; those of each API key are its own."""
        own = self.submission.key_id
        return f"{own} {self.key}" if self.key is not None and own else self.key


def _check_mask(submission: Submission, cleaned: Mapping[PicturePart, CleanPicture]) -> None:
    """One that marks by its alpha lies on the picture as it is; others are scaled."""
    mask = submission.files.get("mask_image")
    if mask is None or not mask.marks_by_alpha:
        return
    (width, height), own = cleaned["source_image"].size, cleaned["mask_image"].size
    if own != (width, height):
        allowed = f"a mask of {width}x{height} px, as the picture has"
        raise InvalidRequestError(
            [FieldError(field="mask_image", value=f"{own[0]}x{own[1]} px", allowed=allowed)]
        )


def _list_masks(cleaned: Mapping[PicturePart, CleanPicture]) -> dict[PicturePart, bytes]:
    return {part: picture.mask for part, picture in cleaned.items() if part in MASK_PARTS}


def _change_request(data: QueuedData, **changes: object) -> QueuedData:
    return data.model_copy(update={"request": data.request.model_copy(update=changes)})


def draw_job_id() -> str:
    """28 hex digits: the time first, so that ids grow, then 64 random bits, so that none is guessed."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"

"""Deletes old jobs: files first, then the record, so that an interrupted deletion is resumed."""

import asyncio
import logging
import time
from typing import Final

from obstore.exceptions import BaseError as StoreError
from redis.exceptions import RedisError

from api_schemas.job import TERMINAL, Job
from api_schemas.stored import UnreadableRecordError
from api_schemas.wire import INPUTS_FOLDER, PYRAMID_FOLDER, job_folders, result_folder
from service.image_store import ImageStore
from service.job_queue import JobQueue
from service.job_store import JobStore, read_time
from service.quotas.usage import UsageStore

_PAGE: Final = 200
# A picture is stored before its job's record; without a record after this time it is orphaned.
_STRANDED_S: Final = 3600.0
log = logging.getLogger(__name__)


class Retention:
    """Removes jobs that ended longer ago than `keep_s`. Idempotent: any number of services may do it.

    Args:
        keep_s: 0 keeps all for ever.
    """

    def __init__(
        self,
        jobs: JobStore,
        queue: JobQueue,
        images: ImageStore,
        usage: UsageStore,
        keep_s: float,
        interval_s: float,
    ) -> None:
        self._usage = usage
        self._jobs = jobs
        self._queue = queue
        self._images = images
        self._keep_s = keep_s
        self._interval_s = interval_s

    async def run(self) -> None:
        """At start and then every `interval_s`, until cancelled."""
        while True:
            try:
                await self.drop_stranded_pictures()
                if self._keep_s:
                    await self.remove_expired()
            except (RedisError, StoreError, OSError) as error:
                log.warning("old jobs cannot be removed: %s", error)
            await asyncio.sleep(self._interval_s)

    async def remove_expired(self) -> None:
        """One pass over all jobs that are old enough to be looked at."""
        oldest = time.time() - self._keep_s
        after: tuple[float, str] | None = None
        while rows := await self._jobs.list_newer(after, oldest, _PAGE):
            after = rows[-1]
            jobs = await self._jobs.get_many([job_id for _, job_id in rows])
            for (_, job_id), job in zip(rows, jobs, strict=True):
                if _is_over(job, oldest) and await self._provide_for_children(job_id):
                    await self._remove(job_id, job if isinstance(job, Job) else None)

    async def _provide_for_children(self, job_id: str) -> bool:
        """Give its pyramid tiles to the jobs that have them in common; False while one of those has not ended."""
        children = await self._jobs.get_many(await self._jobs.list_children(job_id))
        if any(isinstance(child, UnreadableRecordError) for child in children):
            return False
        known = [child for child in children if isinstance(child, Job)]
        if any(child.status not in TERMINAL for child in known):
            return False
        own = f"{result_folder(job_id)}/"
        for child, result in ((child, child.result) for child in known if child.result):
            for inherited in (each for each in result.inherited_pyramids if each.startswith(own)):
                copied = await self._images.copy_missing(
                    f"{inherited}/{PYRAMID_FOLDER}", f"{result.pyramid_key}/{PYRAMID_FOLDER}"
                )
                await self._usage.add_bytes(child, copied)
        return True

    async def drop_stranded_pictures(self) -> None:
        """Pictures without a job: the service died before it wrote the record."""
        job_ids = [
            job_id
            for job_id in await self._images.list_folders(INPUTS_FOLDER)
            if read_time(job_id) < time.time() - _STRANDED_S
        ]
        for job_id, job in zip(job_ids, await self._jobs.get_many(job_ids), strict=True):
            if job is None:
                await self._delete_files(job_id)

    async def _remove(self, job_id: str, job: Job | None) -> None:
        await self._delete_files(job_id)
        await self._queue.forget(job_id)
        if job is None:
            await self._usage.forget_anywhere(job_id)
            await self._jobs.delete(job_id)
        else:
            if job.key_id:
                await self._usage.forget(job.key_id, [job_id])
            await self._jobs.delete(job_id, job.request.parent, job.key_id)

    async def _delete_files(self, job_id: str) -> None:
        for folder in job_folders(job_id):
            await self._images.delete_folder(folder)


def _is_over(job: Job | UnreadableRecordError | None, oldest: float) -> bool:
    """Never before the job has ended; a listed id without a record is what a broken deletion left.

    A record that cannot be read is kept as long as others from the job's creation on.
    """
    return not isinstance(job, Job) or (
        job.status in TERMINAL and (job.finished_at or job.created_at) <= oldest
    )

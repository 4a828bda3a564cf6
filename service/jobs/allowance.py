"""Whether the key that asks may have another job, and what it is told if not."""

import math
import time
from typing import Final

from api_schemas.catalog import Cost
from api_schemas.disk import describe_bytes
from api_schemas.errors import FieldError
from api_schemas.keys import Quota
from service.catalog import ModelCatalog
from service.errors import InvalidRequestError, QuotaExceededError
from service.jobs.submission import Submission
from service.metrics import Metrics
from service.quotas.known import KnownKeys
from service.quotas.places import JobLimit, Lack
from service.quotas.usage import UsageStore
from service.throughput import Throughput

_UNMEASURED_JOB_S: Final = 30.0
_UNKNOWN_S: Final = 60


class Allowance:
    """Reads quotas, and explains what lacks.

    Args:
        kept_s: how long the files of a job stay after its end; None: for ever.
    """

    def __init__(
        self,
        keys: KnownKeys,
        usage: UsageStore,
        catalog: ModelCatalog,
        throughput: Throughput,
        metrics: Metrics,
        kept_s: float | None,
    ) -> None:
        self._keys = keys
        self._usage = usage
        self._catalog = catalog
        self._throughput = throughput
        self._metrics = metrics
        self._kept_s = kept_s

    async def find_quota(self, submission: Submission, cost: Cost) -> Quota:
        """What the key that asks may use.

        Raises:
            InvalidRequestError: its jobs, of this cost each, are more than the key may ever have.
        """
        quota = await self._keys.find_quota(submission.key_id)
        _require_possible(
            "count", submission.places, quota.queued_jobs, "jobs may wait for this API key at a time"
        )
        work = submission.places * cost.megapixel_steps
        what = "megapixel-steps a day for this API key: fewer pixels, or fewer steps"
        _require_possible("megapixel_steps", work, quota.megapixel_steps_per_day, what)
        return quota

    async def expect(self, submission: Submission) -> None:
        """Whether such a job could be had, asked before its pictures are decoded; no place is taken.

        Raises:
            QuotaExceededError: there is no place.
        """
        quota = await self._keys.find_quota(submission.key_id)
        if quota != Quota():
            lack = await self._usage.find_lack(submission.key_id, quota, submission.places)
            if lack is not None:
                raise await self.explain(lack, submission, quota, submission.request.model or "")

    async def explain(
        self, lack: Lack, submission: Submission, quota: Quota, model: str
    ) -> QuotaExceededError:
        """What a client is told, with the time from which it may ask again."""
        self._metrics.quota_refusals.labels(lack.limit).inc()
        limit = _read_limit(quota, lack.limit)
        wait_s = await self._estimate_wait(lack, limit, submission, model)
        error = FieldError(field=lack.limit, value=f"{lack.used:.15g}", allowed=f"at most {limit:.15g}")
        rounded_s = None if wait_s is None else max(1, math.ceil(wait_s))
        return QuotaExceededError(self._describe(lack, limit), error, retry_after_s=rounded_s)

    async def _estimate_wait(
        self, lack: Lack, limit: float, submission: Submission, model: str
    ) -> float | None:
        """Seconds; None where time alone does not help."""
        match lack.limit:
            case "queued_jobs":
                excess = lack.used + submission.places - limit
                return excess * await self._measure_drain(submission.key_id, model)
            case "megapixel_steps":
                return _UNKNOWN_S if lack.free_at is None else lack.free_at - time.time()
            case "store_bytes":
                if lack.free_at is None or self._kept_s is None:
                    return None
                return lack.free_at + self._kept_s - time.time()

    def _describe(self, lack: Lack, limit: float) -> str:
        match lack.limit:
            case "queued_jobs":
                return f"jobs of this API key that wait: {lack.used:g}, at most {limit:g}"
            case "megapixel_steps":
                used = f"{lack.used:.10g} of {limit:.10g} megapixel-steps"
                return f"this API key has used {used} in the last 24 hours, and this needs more than is left"
            case "store_bytes":
                used, most = describe_bytes(int(lack.used)), describe_bytes(int(limit))
                return f"jobs of this API key have {used} in the store, at most {most} may be: {self._tell_retention()}"

    async def _measure_drain(self, key_id: str, model: str) -> float:
        """Seconds until one of the key's waiting jobs begins: as measured of the key, or else of the model."""
        if measured_s := self._throughput.seconds_per_start(key_id, time.time()):
            return measured_s
        per_job_s = self._throughput.seconds_per_job(model) or _UNMEASURED_JOB_S
        return per_job_s / max(1, (await self._catalog.read_recent()).count_workers(model))

    def _tell_retention(self) -> str:
        if self._kept_s is None:
            return "jobs are kept for ever here, so its operator has to allow more"
        days = self._kept_s / 86_400
        return f"jobs are removed {days:.3g} days after their end; its operator may allow more"


def _read_limit(quota: Quota, limit: JobLimit) -> float:
    """The limit that lacks, which is one of the quota."""
    limits: dict[JobLimit, float | None] = {
        "queued_jobs": quota.queued_jobs,
        "megapixel_steps": quota.megapixel_steps_per_day,
        "store_bytes": quota.store_bytes,
    }
    return limits[limit] or 0.0


def _require_possible(field: str, value: float, most: float | None, what: str) -> None:
    if most is not None and value > most:
        allowed = f"at most {most:.15g} {what}"
        raise InvalidRequestError([FieldError(field=field, value=f"{value:.15g}", allowed=allowed)])

"""Finds deliveries that are due and not in the set of those: after damage, or where an older version wrote the event."""

import time
from typing import Final

from api_schemas.job import TERMINAL, Job
from api_schemas.webhook import WebhookEvent
from service.webhooks.deliveries import Deliveries, find_owner
from service.webhooks.endpoints import Endpoints
from service.webhooks.notice import list_notices
from service.webhooks.schedule import DELAYS_S

_GIVEN_UP_S: Final = 1.5 * sum(DELAYS_S)  # by then the last attempt has been made, whatever chance added


class Recovery:
    """Idempotent: any number of services may do it."""

    def __init__(self, endpoints: Endpoints, deliveries: Deliveries) -> None:
        self._endpoints = endpoints
        self._deliveries = deliveries

    async def restore(self, job: Job) -> None:
        """Make due what webhooks want to know of a job, unless it was given to them or is due."""
        oldest = time.time() - _GIVEN_UP_S
        for notice in list_notices(job.id):
            ts = _find_time(job, notice.event)
            if ts is None or ts < oldest:
                continue
            webhook = await self._endpoints.find(notice.endpoint, find_owner(notice, job.key_id))
            if webhook is not None and webhook.wants(notice.event, ts):
                await self._deliveries.restore(notice)


def _find_time(job: Job, event: WebhookEvent) -> float | None:
    """When an event was; None if it was not."""
    if event == "job.started":
        return job.started_at
    has_ended_so = job.status in TERMINAL and event == f"job.{job.status}"
    return job.finished_at if has_ended_so else None

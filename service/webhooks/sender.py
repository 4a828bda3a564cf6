"""Makes one attempt at a delivery, from the record of its job to the record of the attempt."""

import logging
import random
import time
from datetime import UTC, datetime
from typing import Final

from api_schemas.webhook import DeliveryAttempt, Outcome
from service.errors import JobUnreadableError
from service.job_store import JobStore
from service.webhooks.deliveries import Deliveries, find_owner
from service.webhooks.endpoints import Endpoints, StoredWebhook
from service.webhooks.errors import UndeliveredError
from service.webhooks.message import Message
from service.webhooks.network import WebhookClient
from service.webhooks.notice import Notice
from service.webhooks.schedule import find_delay_s
from service.webhooks.slots import WAIT_S, HostSlots, name_host

_MARGIN_S: Final = 5.0  # for what is neither the POST nor the wait for a slot
_UNREADABLE_WAIT_S: Final = 60.0
_GONE: Final = 410
log = logging.getLogger(__name__)


class Sender:
    """Any number of attempts at the same time, but few to one host: a hanging one delays no other.

    Args:
        prefix: address or path, below which clients reach the service.
    """

    def __init__(
        self, jobs: JobStore, endpoints: Endpoints, deliveries: Deliveries, client: WebhookClient, prefix: str
    ) -> None:
        self._jobs = jobs
        self._endpoints = endpoints
        self._deliveries = deliveries
        self._client = client
        self._prefix = prefix
        self._slots = HostSlots()

    async def send(self, notice: Notice, ticket_ms: int) -> None:
        """Make an attempt, unless another process does.

        Args:
            ticket_ms: when it would have been due again, as whoever sends it knows it.
        """
        lease_ms = _in(WAIT_S + self._client.timeout_s + _MARGIN_S)
        if not await self._deliveries.move(notice, ticket_ms, lease_ms):
            return
        try:
            job = await self._jobs.get(notice.job_id)
        except JobUnreadableError:  # another version may read it
            await self._deliveries.move(notice, lease_ms, _in(_UNREADABLE_WAIT_S))
            return
        if job is None:
            await self._deliveries.move(notice, lease_ms, None)
            return
        webhook = await self._endpoints.find(notice.endpoint, find_owner(notice, job.key_id))
        if webhook is None or webhook.disabled:
            await self._record(notice, None, "disabled", lease_ms)
            return
        async with self._slots.take(name_host(webhook.url)) as taken:
            if taken:
                message = Message.write(notice, job, self._prefix)
                await self._attempt(notice, job.key_id, webhook, message, lease_ms)
            else:
                await self._deliveries.move(
                    notice, lease_ms, _in(random.uniform(1, 1 + self._client.timeout_s))
                )

    async def _attempt(
        self, notice: Notice, key_id: str, webhook: StoredWebhook, message: Message, lease_ms: int
    ) -> None:
        attempt = await self._post(webhook, message)
        if attempt.error is None:
            await self._record(notice, attempt, "delivered", lease_ms)
        elif attempt.status_code == _GONE:
            await self._endpoints.disable(notice.endpoint, find_owner(notice, key_id), webhook.url)
            await self._record(notice, attempt, "disabled", lease_ms)
        else:
            await self._record(notice, attempt, "failed", lease_ms)

    async def _post(self, webhook: StoredWebhook, message: Message) -> DeliveryAttempt:
        at, began = datetime.now(UTC), time.monotonic()
        status, error = None, None
        try:
            status = await self._client.post(webhook.url, message.sign(webhook.secrets, at), message.body)
            error = _describe_status(status)
        except UndeliveredError as undelivered:
            error = str(undelivered)
        except Exception:  # else it would be tried for ever, without a record
            log.exception("webhook %s could not be sent", message.id)
            error = "an error of the service; its log says why"
        took_s = round(time.monotonic() - began, 3)
        return DeliveryAttempt(at=at.timestamp(), status_code=status, error=error, duration_s=took_s)

    async def _record(
        self, notice: Notice, attempt: DeliveryAttempt | None, outcome: Outcome, lease_ms: int
    ) -> None:
        known = await self._deliveries.read(notice)
        delay_s = find_delay_s(known.tries + 1, random.random()) if outcome == "failed" else None
        if outcome == "failed" and delay_s is None:
            outcome = "given_up"
        again_ms = None if delay_s is None else _in(delay_s)
        await self._deliveries.finish(notice, known.add(attempt, outcome), outcome, lease_ms, again_ms)
        why = "" if attempt is None or attempt.error is None else f": {attempt.error}"
        log.info("webhook %s of job %s for %s: %s%s", notice.id, notice.job_id, notice.name, outcome, why)


def _in(seconds: float) -> int:
    return round((time.time() + seconds) * 1000)


def _describe_status(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    return f"answered {status}{': redirects are not followed' if 300 <= status < 400 else ''}"

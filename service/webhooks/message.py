"""What is sent: a small body, and headers that say who sends it (Standard Webhooks)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

from pydantic import BaseModel, ConfigDict
from standardwebhooks.webhooks import Webhook

from api_schemas.answers import JobUrls, JobView
from api_schemas.job import Job
from api_schemas.webhook import WebhookEvent
from service.webhooks.notice import Notice

# What a job's view has for those who wait, and an expiring link that would differ from attempt to attempt.
_LEFT_OUT: Final = {
    "data": {"seq": True, "progress": True, "queue_position": True, "eta_s": True, "children": True}
    | {"urls": {"download"}}
}
_AGENT: Final = f"chorale/{version('chorale')}"


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: WebhookEvent
    timestamp: datetime
    data: JobView


@dataclass(frozen=True, slots=True)
class Message:
    """A delivery, the same in every attempt."""

    id: str
    body: bytes

    @classmethod
    def write(cls, notice: Notice, job: Job, prefix: str) -> "Message":
        """
        Args:
            job: its present state.
            prefix: address or path, below which the service is.
        """
        job = _look_back(job, notice.event)
        ts = job.finished_at or job.started_at or job.created_at
        view = JobView.model_construct(**dict(job), urls=JobUrls.below(prefix, job.id))
        body = _Body.model_construct(type=notice.event, timestamp=datetime.fromtimestamp(ts, UTC), data=view)
        return cls(notice.id, body.model_dump_json(exclude=_LEFT_OUT).encode())

    def sign(self, secrets: Sequence[str], at: datetime) -> dict[str, str]:
        """Headers of an attempt, with a signature by each secret."""
        text = self.body.decode()
        signatures = (Webhook(secret).sign(self.id, at, text) for secret in secrets)
        return {
            "webhook-id": self.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signatures),
            "content-type": "application/json",
            "user-agent": _AGENT,
        }


def _look_back(job: Job, event: WebhookEvent) -> Job:
    """The job as the event has left it: one that is sent late may have ended since."""
    if event != "job.started":
        return job
    later = {"finished_at": None, "progress": None, "result": None, "error": None}
    return job.model_copy(update={"status": "processing", "attempt": 1, **later})

"""One event for one endpoint, by the names that stay the same whoever sends it and however often."""

import hashlib
from dataclasses import dataclass

from api_schemas.webhook import ALL_EVENTS, ENDPOINTS, Endpoint, WebhookEvent
from api_schemas.wire import read_id

_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told to whom; an event of these types is once in the log of a job."""

    job_id: str
    event: WebhookEvent
    endpoint: Endpoint

    @classmethod
    def read(cls, member: str) -> "Notice":
        """Inverse of `member`.

        Raises:
            ValueError: this is none.
        """
        job_id, _, name = member.partition("/")
        event, _, endpoint = name.partition("/")
        if read_id(job_id.encode()) is None or event not in ALL_EVENTS or endpoint not in ENDPOINTS:
            raise ValueError(f"{member[:100]!a} is no delivery")
        return cls(job_id, event, endpoint)

    @property
    def name(self) -> str:
        """Among the deliveries of its job."""
        return f"{self.event}/{self.endpoint}"

    @property
    def member(self) -> str:
        """Among all that are due; `APPEND_EVENT` writes it so."""
        return f"{self.job_id}/{self.name}"

    @property
    def id(self) -> str:
        """The header `webhook-id`."""
        return f"msg_{hashlib.blake2b(self.member.encode(), digest_size=_ID_BYTES).hexdigest()}"


def list_notices(job_id: str) -> list[Notice]:
    """All that there can be of a job, in the order in which they come."""
    return [Notice(job_id, event, endpoint) for event in ALL_EVENTS for endpoint in ENDPOINTS]

"""Webhooks: whom a job's end is told, as clients ask for it and as the service answers."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Final, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from api_schemas.fields import RequestPart

WebhookEvent = Literal["job.started", "job.succeeded", "job.failed", "job.canceled", "job.expired"]
Endpoint = Literal["job", "key"]
Outcome = Literal["delivered", "failed", "given_up", "disabled"]

DEFAULT_EVENTS: Final[tuple[WebhookEvent, ...]] = (
    "job.succeeded",
    "job.failed",
    "job.canceled",
    "job.expired",
)
ALL_EVENTS: Final[tuple[WebhookEvent, ...]] = ("job.started", *DEFAULT_EVENTS)
ENDPOINTS: Final[tuple[Endpoint, ...]] = ("job", "key")
MAX_URL: Final = 2048
MAX_FORMER_SECRETS: Final = 4
SECRET_PREFIX: Final = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64

WEBHOOKS_QUEUE: Final = "webhooks"
DELIVER: Final = "service.webhooks.consumer.deliver"
DUE_KEY: Final = "chorale:webhooks:due"
WEBHOOK_WORKERS_KEY: Final = "chorale:webhooks:workers"
OUTCOMES_KEY: Final = "chorale:webhooks:outcomes"


def webhook_key(endpoint: Endpoint, owner: str) -> str:
    """Of the endpoint that a request named, or that an API key has; `owner` is the id of the job or the key."""
    return f"chorale:webhook:{endpoint}:{owner}"


def deliveries_key(job_id: str) -> str:
    return f"chorale:deliveries:{job_id}"


def _check_secret(secret: SecretStr) -> SecretStr:
    """
    Raises:
        ValueError: Standard Webhooks has no such secret; the message does not show it.
    """
    allowed = f"{SECRET_PREFIX} and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} random bytes"
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(allowed) from error
    if not text.startswith(SECRET_PREFIX) or not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(allowed)
    return secret


def _check_events(events: list[WebhookEvent]) -> list[WebhookEvent]:
    if len(set(events)) < len(events):
        raise ValueError("each event once")
    return events


Secret = Annotated[SecretStr, AfterValidator(_check_secret)]


class Webhook(RequestPart):
    """An endpoint that is told of events by POST, signed as Standard Webhooks has it."""

    url: str = Field(
        max_length=MAX_URL,
        description="`https://…` at a public address; the operator may allow others. Redirects are not followed.",
    )
    events: Annotated[list[WebhookEvent], AfterValidator(_check_events)] = Field(
        default=list(DEFAULT_EVENTS),
        min_length=1,
        description="Types of the events that are sent; by default, those that end a job.",
    )
    secret: Secret | None = Field(
        default=None,
        description=f"`{SECRET_PREFIX}` and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} random bytes."
        " If left out with a job, those that `PUT /v1/webhook` has set by then sign; if left out there, the present ones stay, or one is drawn.",
    )
    former_secrets: list[Secret] = Field(
        default=[],
        max_length=MAX_FORMER_SECRETS,
        description="These sign too, while receivers change to a new `secret`.",
    )

    def list_secrets(self) -> list[str]:
        """In the clear, the present one first."""
        given = [self.secret, *self.former_secrets] if self.secret else self.former_secrets
        return [secret.get_secret_value() for secret in given]


AskedWebhook = Annotated[
    Webhook | None,
    # Never dumped: what is stored, shown and written into files is a dump.
    Field(
        default=None,
        exclude=True,
        repr=False,
        description="Told of the job's events, beside the webhook of the API key. It is not shown with the job.",
    ),
]


def write_webhook(webhook: Webhook) -> dict[str, object]:
    """JSON of what was set, with secrets in the clear: for the one that it is sent to."""
    written = webhook.model_dump(mode="json", exclude_unset=True)
    if webhook.secret is not None:
        written["secret"] = webhook.secret.get_secret_value()
    if webhook.former_secrets:
        written["former_secrets"] = [secret.get_secret_value() for secret in webhook.former_secrets]
    return written


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WebhookView(_Answer):
    """The webhook of an API key, without its secrets."""

    url: str
    events: list[WebhookEvent]
    num_secrets: int = Field(description="How many secrets sign each delivery.")
    disabled: bool = Field(
        description="The endpoint has answered 410, and gets nothing until it is set again, or a delivery is sent again."
    )
    secret: str | None = Field(None, description="The secret, once: where the service has just drawn it.")


class DeliveryAttempt(BaseModel):
    """One POST."""

    model_config = ConfigDict(frozen=True)

    at: float = Field(description="Unix time in seconds.")
    status_code: int | None = Field(None, description="What the endpoint answered; null if it did not.")
    error: str | None = Field(None, description="What was wrong; null for a status from 200 to 299.")
    duration_s: float


class Delivery(_Answer):
    """One event for one endpoint."""

    id: str = Field(description="The header `webhook-id`, the same in every attempt.")
    event: WebhookEvent
    endpoint: Endpoint = Field(description="job: named in its request; key: that of the API key.")
    status: Literal["waiting", "delivered", "failed", "disabled"]
    next_attempt_at: float | None = Field(
        description="Unix time in seconds, while it waits; while it is being sent, when another would take it over."
    )
    attempts: list[DeliveryAttempt] = Field(description="Oldest first, at most the last 20.")


class DeliveryList(_Answer):
    data: list[Delivery]


def hide_webhook_secrets(value: object, location: Sequence[str] = ()) -> object:
    """What a client has sent, as it may be shown: secrets of webhooks are left out, wherever they stand.

    Args:
        location: names of the fields that it stood in.
    """
    if not _SECRET_FIELDS.isdisjoint(location):
        return _HIDDEN
    match value:
        case dict():
            items = cast(dict[str, object], value).items()
            return {name: hide_webhook_secrets(each, (name,)) for name, each in items}
        case list():
            return [hide_webhook_secrets(each) for each in cast(list[object], value)]
        case str() if value.startswith(SECRET_PREFIX):
            return _HIDDEN
        case _:
            return value


_SECRET_FIELDS = frozenset({"secret", "former_secrets"})
_HIDDEN = "**********"

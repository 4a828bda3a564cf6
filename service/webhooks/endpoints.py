"""Whom events are told: webhooks of jobs and of API keys. Secrets lie here, apart from all that is shown."""

import base64
import secrets
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from api_schemas.errors import FieldError
from api_schemas.webhook import (
    ALL_EVENTS,
    MAX_FORMER_SECRETS,
    SECRET_PREFIX,
    Endpoint,
    Webhook,
    WebhookEvent,
    WebhookView,
    webhook_key,
)
from service.errors import InvalidRequestError, WebhookNotFoundError
from service.settings import Network
from service.unreadable import UnreadableRecords, require_wrong_type
from service.webhooks.targets import find_misfit

_FIELDS: Final = ("url", "events", "secrets", "disabled", "set_at")
_SECRET_BYTES: Final = 32
# KEYS: a webhook.  ARGV: the URL that answered 410; another one may have been set since.
_DISABLE: Final = """
if redis.call('HGET', KEYS[1], 'url') == ARGV[1] then redis.call('HSET', KEYS[1], 'disabled', '1') end
"""


@dataclass(frozen=True, slots=True)
class StoredWebhook:
    """A webhook at rest. Its secrets are in the clear, since each delivery is signed with them.

    Args:
        set_at: Unix time; it is told of no event before.
    """

    url: str
    events: tuple[WebhookEvent, ...]
    secrets: tuple[str, ...]
    disabled: bool = False
    set_at: float = 0.0

    def write(self) -> dict[FieldT, EncodableT]:
        """Fields of its hash; `APPEND_EVENT` reads the events."""
        lists = {"events": " ".join(self.events), "secrets": " ".join(self.secrets)}
        return {"url": self.url, "set_at": self.set_at, **lists}

    def wants(self, event: WebhookEvent, ts: float) -> bool:
        """Whether it is to be told of an event of this time."""
        return not self.disabled and event in self.events and ts >= self.set_at

    def show(self, drawn: str | None = None) -> WebhookView:
        return WebhookView(
            url=self.url,
            events=list(self.events),
            num_secrets=len(self.secrets),
            disabled=self.disabled,
            secret=drawn,
        )


class Endpoints:
    """Webhooks of jobs are written with the job, in its transaction."""

    def __init__(self, redis: Redis, networks: Sequence[Network], unreadable: UnreadableRecords) -> None:
        self._redis = redis
        self._networks = networks
        self._unreadable = unreadable

    async def accept(self, webhook: Webhook | None, key_id: str) -> StoredWebhook | None:
        """What a request has asked for, as it is stored with its job.

        Raises:
            InvalidRequestError: its URL is refused, or there is no secret.
        """
        if webhook is None:
            return None
        self._require_url(webhook, "webhook.url")
        stored = _store(webhook)
        if webhook.secret is None:
            own = await self.find("key", key_id)
            if own is None:
                allowed = "a secret, or one of the API key, by `PUT /v1/webhook`"
                raise InvalidRequestError([FieldError(field="webhook.secret", value="null", allowed=allowed)])
            stored = replace(stored, secrets=_join(own.secrets, stored.secrets))
        return stored

    async def set(self, webhook: Webhook, key_id: str) -> WebhookView:
        """Set the webhook of an API key; it is no longer disabled.

        Raises:
            InvalidRequestError: its URL is refused.
        """
        self._require_url(webhook, "url")
        stored, drawn = replace(_store(webhook), set_at=time.time()), None
        if webhook.secret is None:
            own = await self.find("key", key_id)
            if own is None:
                drawn = f"{SECRET_PREFIX}{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"
            present = own.secrets if own else (cast(str, drawn),)
            stored = replace(stored, secrets=_join(present, stored.secrets))
        async with self._redis.pipeline(transaction=True) as transaction:
            transaction.delete(webhook_key("key", key_id))
            transaction.hset(webhook_key("key", key_id), mapping=stored.write())
            await transaction.execute()
        return stored.show(drawn)

    async def show(self, key_id: str) -> WebhookView:
        """
        Raises:
            WebhookNotFoundError: this API key has none.
        """
        own = await self.find("key", key_id)
        if own is None:
            raise WebhookNotFoundError("this API key has no webhook: PUT /v1/webhook sets one")
        return own.show()

    async def remove(self, key_id: str) -> None:
        await self._redis.delete(webhook_key("key", key_id))

    async def find(self, endpoint: Endpoint, owner: str) -> StoredWebhook | None:
        """None where there is none, or none that can be read."""
        key = webhook_key(endpoint, owner)
        try:
            row = await cast(Awaitable[list[bytes | None]], self._redis.hmget(key, _FIELDS))
            return _read(row)
        except (RedisError, ValueError) as error:
            if isinstance(error, RedisError):
                require_wrong_type(error)
            self._unreadable.tell("webhook", key, "this is no webhook")
            return None

    async def disable(self, endpoint: Endpoint, owner: str, url: str) -> None:
        """The URL has answered 410."""
        key = webhook_key(endpoint, owner)
        await cast(Awaitable[object], self._redis.eval(_DISABLE, 1, key, url))

    def _require_url(self, webhook: Webhook, field: str) -> None:
        allowed = find_misfit(webhook.url, self._networks)
        if allowed is not None:
            raise InvalidRequestError(
                [FieldError(field=field, value=ascii(webhook.url)[:200], allowed=allowed)]
            )


def _store(webhook: Webhook) -> StoredWebhook:
    return StoredWebhook(webhook.url, tuple(webhook.events), tuple(webhook.list_secrets()))


def _join(present: Sequence[str], former: Sequence[str]) -> tuple[str, ...]:
    """Each once, and no more than a request may have."""
    return tuple(dict.fromkeys((*present, *former)))[: 1 + MAX_FORMER_SECRETS]


def _read(row: Sequence[bytes | None]) -> StoredWebhook | None:
    """
    Raises:
        ValueError: the hash is not whole, or holds something else.
    """
    url, events, keys, disabled, set_at = (None if field is None else field.decode() for field in row)
    if url is None and events is None:
        return None
    if not url or not events or not keys:
        raise ValueError("not whole")
    wanted = events.split(" ")
    return StoredWebhook(
        url=url,
        events=tuple(event for event in ALL_EVENTS if event in wanted),
        secrets=tuple(keys.split(" ")),
        disabled=bool(disabled),
        set_at=float(set_at or 0),
    )

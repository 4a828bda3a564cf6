"""The API keys of a service, as its operator makes and revokes them. The service itself only reads them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import cast

from pydantic import ValidationError
from redis import Redis
from redis.client import Pipeline

from api_schemas.keys import (
    MAX_FORMER_SECRETS,
    ApiKey,
    FormerSecret,
    Quota,
    Scope,
    StoredKey,
    digest_secret,
    draw_key_id,
    draw_secret,
    write_key,
)
from api_schemas.webhook import webhook_key
from api_schemas.wire import KEYS_KEY, UNREADABLE_PREFIX, api_key_key
from chorale.errors import FormerSecretsError, NoSuchKeyError, TakenNameError, UnreadableKeyError


class KeyRecords:
    """Keys in Redis, by id, name, or the visible part of the key."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(self, name: str, scopes: frozenset[Scope], quota: Quota | None = None) -> str:
        """Store a new key, and give it as its owner gets it, which nobody can a second time.

        Raises:
            TakenNameError: a key of this name is in use.
        """
        key = ApiKey(
            id=draw_key_id(), name=name, scopes=scopes, quota=quota or Quota(), created_at=time.time()
        )
        secret = draw_secret()
        stored = StoredKey(key=key, digest=digest_secret(secret))

        def write(transaction: Pipeline) -> None:
            if any(other.name == name and other.revoked_at is None for other in self.list_all()):
                raise TakenNameError(name)
            transaction.multi()
            transaction.set(api_key_key(key.id), stored.model_dump_json())
            transaction.zadd(KEYS_KEY, {key.id: key.created_at})

        self._redis.transaction(write, KEYS_KEY)  # pyright: ignore[reportUnknownMemberType]
        return write_key(key.id, secret)

    def list_all(self) -> Sequence[ApiKey]:
        """All keys that can be read, the oldest first; those that are revoked too."""
        found: list[ApiKey] = []
        for key_id in self._list_ids():
            with suppress(UnreadableKeyError):
                found.append(self._read(key_id).key)
        return found

    def revoke(self, name: str) -> ApiKey:
        """Let nobody in by this key any more, and forget its webhook; revoking twice changes nothing.

        Raises:
            NoSuchKeyError: there is none of this name.
        """
        now = time.time()

        def revoke(stored: StoredKey) -> StoredKey:
            revoked = stored.key.model_copy(update={"revoked_at": stored.key.revoked_at or now})
            return stored.model_copy(update={"key": revoked})

        return self._change(name, revoke).key

    def limit(self, name: str, quota: Quota) -> ApiKey:
        """Give a key another quota.

        Raises:
            NoSuchKeyError: there is none of this name, or it was revoked.
        """

        def limit(stored: StoredKey) -> StoredKey:
            _require_live(stored, name)
            return stored.model_copy(update={"key": stored.key.model_copy(update={"quota": quota})})

        return self._change(name, limit).key

    def rotate(self, name: str, overlap_s: float) -> str:
        """Give a key another secret.

        Args:
            overlap_s: how long the one before is accepted too, besides those that were promised time earlier; with
                0 all of them end.

        Raises:
            NoSuchKeyError: there is none of this name, or it was revoked.
            FormerSecretsError: too many of them are accepted already.
        """
        secret, now = draw_secret(), time.time()

        def rotate(stored: StoredKey) -> StoredKey:
            _require_live(stored, name)
            former = _list_former(stored, name, now, overlap_s) if overlap_s else ()
            return stored.model_copy(update={"digest": digest_secret(secret), "former": former})

        return write_key(self._change(name, rotate).key.id, secret)

    def delete(self, name: str) -> str:
        """Forget a key with its webhook, and give its id. Its jobs stay, for keys with the scope admin.

        Raises:
            NoSuchKeyError: there is none of this name.
        """
        key_id = self._find(name)
        with self._redis.pipeline(transaction=True) as transaction:  # pyright: ignore[reportUnknownMemberType]
            transaction.delete(api_key_key(key_id), webhook_key("key", key_id))
            transaction.zrem(KEYS_KEY, key_id)
            transaction.execute()
        return key_id

    def _change(self, name: str, change: Callable[[StoredKey], StoredKey]) -> StoredKey:
        """Read, change and write, again if another came first."""
        key_id = self._find(name)
        changed: list[StoredKey] = []

        def write(transaction: Pipeline) -> None:
            changed[:] = [change(self._read(key_id))]
            transaction.multi()
            transaction.set(api_key_key(key_id), changed[0].model_dump_json())
            if changed[0].key.revoked_at is not None:
                transaction.delete(webhook_key("key", key_id))

        self._redis.transaction(write, api_key_key(key_id))  # pyright: ignore[reportUnknownMemberType]
        return changed[0]

    def _find(self, name: str) -> str:
        """Of the live ones first: a name may be used again once its key was revoked."""
        for key in sorted(self.list_all(), key=lambda key: (key.revoked_at is not None, -key.created_at)):
            if name in (key.name, key.id, f"chorale_{key.id}"):
                return key.id
        if (key_id := name.removeprefix("chorale_")) in self._list_ids():  # and cannot be read
            return key_id
        raise NoSuchKeyError(name)

    def _list_ids(self) -> list[str]:
        if self._redis.type(KEYS_KEY) not in (b"zset", b"none"):
            self._list_again()
        members = self._redis.zrange(KEYS_KEY, 0, -1)  # pyright: ignore[reportUnknownMemberType]
        return [member.decode() for member in cast(list[bytes], members)]

    def _list_again(self) -> None:
        """What lies where the list belongs is set aside, and the list made of the keys that can be read."""
        self._redis.rename(KEYS_KEY, UNREADABLE_PREFIX + KEYS_KEY)  # pyright: ignore[reportUnknownMemberType]
        first = api_key_key("")
        for name in cast(Iterator[bytes], self._redis.scan_iter(f"{first}*")):  # pyright: ignore[reportUnknownMemberType]
            with suppress(UnreadableKeyError):
                key = self._read(name.decode(errors="replace").removeprefix(first)).key
                self._redis.zadd(KEYS_KEY, {key.id: key.created_at})

    def _read(self, key_id: str) -> StoredKey:
        body = cast(bytes | None, self._redis.get(api_key_key(key_id)))
        try:
            return StoredKey.model_validate_json(body or b"", extra="ignore")
        except ValidationError as error:
            raise UnreadableKeyError(key_id) from error


def _require_live(stored: StoredKey, name: str) -> None:
    """
    Raises:
        NoSuchKeyError: it was revoked.
    """
    if stored.key.revoked_at is not None:
        raise NoSuchKeyError(f"{name}, which was revoked")


def _list_former(stored: StoredKey, name: str, now: float, overlap_s: float) -> tuple[FormerSecret, ...]:
    """Those whose time has not run out, and the present one.

    Raises:
        FormerSecretsError: these are too many.
    """
    kept = [former for former in stored.former if former.until > now]
    if len(kept) >= MAX_FORMER_SECRETS:
        wait_s = min(former.until for former in kept) - now
        raise FormerSecretsError(name, MAX_FORMER_SECRETS, wait_s)
    return (*kept, FormerSecret(digest=stored.digest, until=now + overlap_s))

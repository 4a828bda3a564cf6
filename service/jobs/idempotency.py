"""One Idempotency-Key makes one job, also when it is sent several times at once."""

import hashlib
import re
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.wire import idempotency_key, read_id
from service.errors import ConflictError, IdempotencyMismatchError
from service.unreadable import UnreadableRecords, require_wrong_type

_LIFETIME_S: Final = 86_400
# A process that dies between claim and record blocks its key for so long.
_IN_FLIGHT_S: Final = 60
_RETRY_S: Final = 1
_FINGERPRINT: Final = re.compile(rb"[0-9a-f]{64}")


class IdempotencyStore:
    """Keys are claimed with the job id that their request will have."""

    def __init__(self, redis: Redis, jobs_kept_s: float, unreadable: UnreadableRecords) -> None:
        self._redis = redis
        self._unreadable = unreadable
        # A key must not be stored for longer than its job.
        self._lifetime_s = max(_IN_FLIGHT_S, min(_LIFETIME_S, int(jobs_kept_s) or _LIFETIME_S))

    async def claim(self, key: str, fingerprint: str, job_id: str) -> str:
        """The id of this key's job: `job_id` if the claim is new, else the earlier one.

        Args:
            fingerprint: the same for the same body.

        Raises:
            IdempotencyMismatchError: the key was used for another body.
        """
        claim = f"{fingerprint}:{job_id}"
        name = _name(key)
        for _ in range(2):  # what is there may expire in between, or be unreadable
            if await self._redis.set(name, claim, nx=True, ex=_IN_FLIGHT_S):
                return job_id
            if held := await self._read(name):
                held_fingerprint, held_id = held
                if held_fingerprint != fingerprint:
                    raise IdempotencyMismatchError("this Idempotency-Key was used with another body")
                return held_id
        raise ConflictError("this Idempotency-Key is being released", retry_after_s=_RETRY_S)

    async def _read(self, name: str) -> tuple[str, str] | None:
        """Fingerprint and job id; one that cannot be read is deleted."""
        try:
            held = cast(bytes | None, await self._redis.get(name))
        except RedisError as error:
            require_wrong_type(error)
            held = b""
        if held is None:
            return None
        fingerprint, _, job_id = held.partition(b":")
        if _FINGERPRINT.fullmatch(fingerprint) and (known := read_id(job_id)):
            return fingerprint.decode(), known
        self._unreadable.tell("idempotency", name, "this is no claim")
        await self._redis.delete(name)
        return None

    async def keep(self, key: str) -> None:
        """Keep the key of a recorded job for a day, or as long as the job."""
        await self._redis.expire(_name(key), self._lifetime_s)

    async def release(self, key: str) -> None:
        """The request was refused, so the key may be used again."""
        await self._redis.delete(_name(key))


def _name(key: str) -> str:
    return idempotency_key(hashlib.sha256(key.encode()).hexdigest())

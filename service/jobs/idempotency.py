"""One Idempotency-Key makes one job, also when it is sent several times at once."""

import hashlib
from typing import Final, cast

from redis.asyncio import Redis

from api_schemas.wire import idempotency_key
from service.errors import ConflictError, IdempotencyMismatchError

_LIFETIME_S: Final = 86_400
# A process that dies between claim and record blocks its key for so long.
_IN_FLIGHT_S: Final = 60
_RETRY_S: Final = 1


class IdempotencyStore:
    """Keys are claimed with the job id that their request will have."""

    def __init__(self, redis: Redis, jobs_kept_s: float) -> None:
        self._redis = redis
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
        if await self._redis.set(name, claim, nx=True, ex=_IN_FLIGHT_S):
            return job_id
        held = cast(bytes | None, await self._redis.get(name))
        if held is None:  # it expired between the two calls
            raise ConflictError("this Idempotency-Key is being released", retry_after_s=_RETRY_S)
        held_fingerprint, _, held_id = held.decode().partition(":")
        if held_fingerprint != fingerprint:
            raise IdempotencyMismatchError("this Idempotency-Key was used with another body")
        return held_id

    async def keep(self, key: str) -> None:
        """Keep the key of a recorded job for a day, or as long as the job."""
        await self._redis.expire(_name(key), self._lifetime_s)

    async def release(self, key: str) -> None:
        """The request was refused, so the key may be used again."""
        await self._redis.delete(_name(key))


def _name(key: str) -> str:
    return idempotency_key(hashlib.sha256(key.encode()).hexdigest())

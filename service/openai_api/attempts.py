"""Which request of a client repeats another one."""

from secrets import token_hex
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.wire import attempt_key
from service.unreadable import UnreadableRecords, require_wrong_type

_REMEMBERED_S: Final = 86_400


class Attempts:
    """OpenAI's clients repeat a request that failed or took too long, and say only that they do: by its content it is
    known again, so that no second picture is made."""

    def __init__(self, redis: Redis, unreadable: UnreadableRecords) -> None:
        self._redis = redis
        self._unreadable = unreadable

    async def name(self, fingerprint: str, *, repeated: bool) -> str:
        """The token of what is asked for: another one each time, unless this repeats the latest of this content.

        Args:
            fingerprint: of the content and of who asks.
        """
        key = attempt_key(fingerprint)
        if repeated and (token := await self._read(key)):
            return token
        token = token_hex(16)
        await self._redis.set(key, token, ex=_REMEMBERED_S)
        return token

    async def _read(self, key: str) -> str | None:
        try:
            token = cast(bytes | None, await self._redis.get(key))
        except RedisError as error:
            require_wrong_type(error)
            self._unreadable.tell("idempotency", key, error)
            return None
        return token.decode(errors="replace") if token else None

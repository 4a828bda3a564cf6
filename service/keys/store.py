"""The API keys in Redis, as every request needs them: read, and remembered for a second."""

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, cast

from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_schemas.keys import TICKET_LIFETIME_S, ApiKey, StoredKey, digest_secret, read_key
from api_schemas.stored import UnreadableRecordError, read_stored
from api_schemas.wire import KEYS_KEY, api_key_key, session_key, sessions_of_key, ticket_key
from service.errors import UnauthenticatedError
from service.unreadable import UnreadableRecords, require_wrong_type

SESSION_LIFETIME_S: Final = 7 * 86_400
_SESSIONS: Final = 20  # of one key; the oldest end
_FRESH_S: Final = 1.0  # so long a key may work after it was revoked
_REMEMBERED: Final = 10_000
_WORD: Final = re.compile(r"[0-9a-f]{12}\.[0-9a-f]{64}")
# KEYS: a new session, and those of its key.  ARGV: digests of the secret and of the word, lifetime in s, sessions that
# stay, and what names of sessions begin with. What is no list of sessions makes way for one.
_OPEN: Final = """
if redis.call('TYPE', KEYS[2]).ok ~= 'zset' then redis.call('DEL', KEYS[2]) end
local now = redis.call('TIME')
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
redis.call('ZADD', KEYS[2], now[1] * 1000000 + now[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1 - ARGV[4])) do
  redis.call('DEL', ARGV[5] .. name)
  redis.call('ZREM', KEYS[2], name)
end
"""
_stored = TypeAdapter(StoredKey)
Holder = tuple[str, str]  # id of a key, and digest of the secret by which a stream was opened
NOBODY: Final[Holder] = "", ""  # of a stream that was opened while no keys were required
_ENDED: Final = (
    "this API key is accepted no more: it was revoked, or its secret replaced, while its client waited"
)
_Answer = bytes | RedisError | None


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret that was accepted, by its digest, and the key that it is of."""

    key: ApiKey
    digest: str

    @property
    def holder(self) -> Holder:
        return self.key.id, self.digest

    def write_word(self) -> tuple[str, str]:
        """A word for its holder, as `key id.random digits`, and the digest under which it is stored."""
        word = f"{self.key.id}.{secrets.token_hex(32)}"
        return word, digest_secret(word)


class KeyStore:
    """Costs a request at most one round trip, and none for a credential that was seen in the last second.

    Args:
        always: keys are required even before there is one.
    """

    def __init__(self, redis: Redis, unreadable: UnreadableRecords, *, always: bool) -> None:
        self._redis = redis
        self._open = redis.register_script(_OPEN)
        self._unreadable = unreadable
        self._always = always
        self._exist = False
        self._looked_at = -_FRESH_S
        self._recent: OrderedDict[str, tuple[Credential, float]] = OrderedDict()

    @property
    def are_required(self) -> bool:
        """As far as this process knows."""
        return self._always or self._exist

    async def find_whether_required(self, *, is_given: bool) -> bool:
        """Once there is a key, keys are required; a look into Redis, at most once a second, while there is none.

        Args:
            is_given: someone comes with a credential, and so with the first key perhaps.
        """
        is_fresh = not is_given and time.monotonic() - self._looked_at < _FRESH_S
        if not self.are_required and not is_fresh:
            await self._look()
        return self.are_required

    async def are_gone(self) -> bool:
        """Whether, where only keys that exist are required, the last of them was deleted."""
        if self._always:
            return False
        await self._look()
        return not self._exist

    async def find_by_key(self, text: str) -> Credential | None:
        """The credential of a key as its owner has it; None if that is not accepted."""
        parts = read_key(text)
        if parts is None:
            return None
        key_id, digest = parts[0], digest_secret(parts[1])
        if known := self._recall(f"{key_id} {digest}"):
            return known
        (stored,) = await self._read_all([key_id])
        return self._accept(f"{key_id} {digest}", stored, digest)

    async def find_by_session(self, word: str) -> Credential | None:
        """The same for a browser that has signed in: its key may not have been revoked, nor its secret replaced."""
        name = digest_secret(word)
        return self._recall(name) or await self._find_by_word("GET", session_key(name), word, name)

    async def find_by_ticket(self, word: str, job_id: str) -> Credential | None:
        """The same for a ticket, which is used up by this, whichever job it was for."""
        return await self._find_by_word("GETDEL", ticket_key(digest_secret(word)), word, None, f"{job_id} ")

    async def find_key(self, key_id: str) -> ApiKey | None:
        """The key of this id, revoked or not; None if there is none."""
        (stored,) = await self._read_all([key_id])
        return stored.key if stored else None

    async def find_ended(self, holders: Collection[Holder]) -> set[Holder]:
        """Those of them that are accepted no more; nobody is not, once keys are required."""
        keyed = [holder for holder in holders if holder != NOBODY]
        stored = await self._read_all([key_id for key_id, _ in keyed])
        now = time.time()
        ended = {
            holder
            for holder, present in zip(keyed, stored, strict=True)
            if present is None or not present.accepts(holder[1], now)
        }
        if NOBODY in holders and await self.find_whether_required(is_given=True):
            ended.add(NOBODY)
        return ended

    async def require(self, holder: Holder) -> None:
        """Before what was waited for is answered.

        Raises:
            UnauthenticatedError: it is accepted no more.
        """
        if await self.find_ended([holder]):
            raise UnauthenticatedError(_ENDED, given=True)

    async def open_session(self, credential: Credential) -> str:
        """A word for the cookie of a browser; worth as much as the secret that it was opened with, and as long.

        The oldest of the key's sessions end if there are more than twenty.
        """
        word, name = credential.write_word()
        await self._open(
            keys=[session_key(name), sessions_of_key(credential.key.id)],
            args=[credential.digest, name, SESSION_LIFETIME_S, _SESSIONS, session_key("")],
        )
        return word

    async def close_session(self, word: str) -> None:
        if not _WORD.fullmatch(word):
            return
        name = digest_secret(word)
        self._recent.pop(name, None)
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.delete(session_key(name))
            pipeline.zrem(sessions_of_key(word.partition(".")[0]), name)
            await pipeline.execute()

    async def write_ticket(self, credential: Credential, job_id: str) -> str:
        """A word that opens one stream of this job, once."""
        word, name = credential.write_word()
        await self._redis.set(ticket_key(name), f"{job_id} {credential.digest}", ex=TICKET_LIFETIME_S)
        return word

    async def _look(self) -> None:
        self._exist = bool(await self._redis.exists(KEYS_KEY))
        self._looked_at = time.monotonic()

    def _recall(self, name: str) -> Credential | None:
        credential, until = self._recent.get(name, (None, 0.0))
        return credential if time.monotonic() < until else None

    def _accept(self, name: str | None, stored: StoredKey | None, digest: str) -> Credential | None:
        """Remember an accepted one under a name; those that are refused are looked up each time."""
        if stored is None or not stored.accepts(digest, time.time()):
            return None
        credential = Credential(stored.key, digest)
        if name is not None:
            self._recent[name] = credential, time.monotonic() + _FRESH_S
            self._recent.move_to_end(name)
            if len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
        return credential

    async def _find_by_word(
        self, command: str, place: str, word: str, name: str | None, prefix: str = ""
    ) -> Credential | None:
        if not _WORD.fullmatch(word):
            return None
        key_id = word.partition(".")[0]
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.execute_command(command, place)  # pyright: ignore[reportUnknownMemberType]
            pipeline.get(api_key_key(key_id))
            held, stored = cast(list[_Answer], await pipeline.execute(raise_on_error=False))
        text = self._read_text(place, held)
        digest = text.removeprefix(prefix) if text.startswith(prefix) else ""
        return self._accept(name, self._read_stored(key_id, stored), digest)

    async def _read_all(self, key_ids: Sequence[str]) -> list[StoredKey | None]:
        if not key_ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key_id in key_ids:
                pipeline.get(api_key_key(key_id))
            answers = cast(list[_Answer], await pipeline.execute(raise_on_error=False))
        return [self._read_stored(key_id, answer) for key_id, answer in zip(key_ids, answers, strict=True)]

    def _read_stored(self, key_id: str, answer: _Answer) -> StoredKey | None:
        """None if there is no such key; what cannot be read is skipped, so nobody gets in by it."""
        try:
            text = self._read_text(api_key_key(key_id), answer)
            return read_stored(_stored, text.encode()) if text else None
        except UnreadableRecordError as error:
            self._unreadable.tell("key", key_id, error)
            return None

    def _read_text(self, place: str, answer: _Answer) -> str:
        """Empty if there is nothing, or nothing of ours."""
        if isinstance(answer, RedisError):
            require_wrong_type(answer)
            self._unreadable.tell("key", place, answer)
            return ""
        return (answer or b"").decode("utf-8", "replace")

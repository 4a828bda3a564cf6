"""Which request repeats another one."""

import asyncio

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api_schemas.wire import attempt_key
from service.metrics import Metrics
from service.openai_api.attempts import Attempts
from service.unreadable import UnreadableRecords


def test_a_repetition_has_the_token_of_the_latest_of_its_content(valkey: str, redis: Redis) -> None:
    """What is stored in another form counts as never seen."""

    async def ask() -> list[str]:
        async with AsyncRedis.from_url(valkey) as client:
            attempts = Attempts(client, UnreadableRecords(Metrics()))
            first = [await attempts.name("a", repeated=repeated) for repeated in (True, False, True, True)]
            other = await attempts.name("b", repeated=True)
            redis.delete(attempt_key("a"))
            redis.rpush(attempt_key("a"), "x")
            return [*first, other, *[await attempts.name("a", repeated=True) for _ in range(2)]]

    unseen, latest, *same, other, renewed, last = asyncio.run(ask())
    assert same == [latest, latest]
    assert len({unseen, latest, other, renewed}) == 4
    assert last == renewed
    assert redis.ttl(attempt_key("a")) > 0

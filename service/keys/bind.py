"""Whether an address that is not this machine's alone may be bound."""

import logging

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from api_schemas.wire import KEYS_KEY

_ANSWER_S = 5.0
log = logging.getLogger(__name__)


def lacks_keys(redis_url: str) -> bool:
    """Whether there is no API key; False where nobody can tell, since then nobody gets in either."""
    try:
        with Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            redis_url,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_ANSWER_S,
            retry=Retry(NoBackoff(), 0),
        ) as redis:
            return not redis.exists(KEYS_KEY)
    except (RedisError, OSError) as error:
        log.warning("whether there are API keys is not known: %s", error)
        return False

"""Counts the calls of each API key, and refuses those over its rate.

Headers as structured fields: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-11. Only the
rate of calls is told there: the draft has no units for jobs, megapixel-steps and stored bytes; `GET /v1/usage` does.
"""

from typing import Final

from redis.exceptions import RedisError, ResponseError

from api_schemas.errors import FieldError
from api_schemas.keys import ApiKey
from service.errors import RateLimitedError, UnavailableError
from service.metrics import Metrics
from service.outages import explain_queue
from service.quotas.rate import WINDOW_S, Rate, RateLimiter

_RETRY_AFTER_S: Final = 5


class CallCounter:
    """One round trip a call, and none for keys without this limit."""

    def __init__(self, limiter: RateLimiter, metrics: Metrics) -> None:
        self._limiter = limiter
        self._metrics = metrics

    async def count(self, caller: ApiKey) -> dict[str, str]:
        """Count a call of this key, and give the headers that tell what is left.

        Nothing is counted while the queue server refuses writes, since reads work then.

        Raises:
            RateLimitedError: no call is left.
            UnavailableError: the queue server does not answer.
        """
        limit = caller.quota.calls_per_minute
        if limit is None:
            return {}
        try:
            rate = await self._limiter.call(caller.id, limit)
        except ResponseError:
            return {}
        except (RedisError, OSError) as error:
            raise UnavailableError(explain_queue(error).message, retry_after_s=_RETRY_AFTER_S) from error
        if not rate.allowed:
            raise self._refuse(rate)
        return _describe(rate)

    def _refuse(self, rate: Rate) -> RateLimitedError:
        self._metrics.quota_refusals.labels("calls").inc()
        detail = f"{rate.limit} calls a minute are allowed with this API key, and no more are left"
        field = FieldError(
            field="calls", value=f"{rate.limit - rate.remaining}", allowed=f"at most {rate.limit}"
        )
        error = RateLimitedError(detail, field, retry_after_s=rate.wait_s)
        error.headers.update(_describe(rate))
        return error


def _describe(rate: Rate) -> dict[str, str]:
    """The quota, what is left of it, and in how many seconds one call more is allowed."""
    return {
        "RateLimit-Policy": f'"calls";q={rate.limit};w={WINDOW_S}',
        "RateLimit": f'"calls";r={rate.remaining};t={rate.wait_s}',
    }

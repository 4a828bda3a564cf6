"""Counts the calls of each API key, refuses those over its rate, and tells how many are left.

Headers as structured fields: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-11. Only the
rate of calls is told there: the draft has no units for jobs, megapixel-steps and stored bytes; `GET /v1/usage` does.
"""

import re
from typing import Final

from redis.exceptions import RedisError, ResponseError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_schemas.errors import FieldError
from api_schemas.keys import ApiKey
from service.errors import RateLimitedError, ServiceError, UnavailableError
from service.http.problems import answer
from service.metrics import Metrics
from service.outages import explain_queue
from service.quotas.known import KnownKeys
from service.quotas.rate import WINDOW_S, Rate, RateLimiter

_RETRY_AFTER_S: Final = 5
# The page and its parts are no calls, and neither are tiles: one look at a large picture takes hundreds.
_CALLS: Final = re.compile(r"/v1/(?!jobs/[^/]*/(?:tiles|image_files)/)")


class RateLimitMiddleware:
    """Inside of what finds out who calls: middleware is added from the inside out."""

    def __init__(self, app: ASGIApp, keys: KnownKeys, limiter: RateLimiter, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._limiter = limiter
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: ApiKey | None = scope.get("caller")
        if caller is None:
            return await self._app(scope, receive, send)
        self._keys.note(caller)
        rate = await self._count(scope, caller)
        if isinstance(rate, UnavailableError):
            return await answer(scope, rate)(scope, receive, send)
        if rate is None:
            return await self._app(scope, receive, send)

        async def send_told(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(describe_rate(rate))
            await send(message)

        app = self._app if rate.allowed else answer(scope, self._refuse(rate))
        await app(scope, receive, send_told)

    async def _count(self, scope: Scope, caller: ApiKey) -> Rate | UnavailableError | None:
        """None where nothing is counted; so it is while the queue server refuses writes, since reads work then."""
        limit = caller.quota.calls_per_minute
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if limit is None or not _CALLS.match(path):
            return None
        try:
            return await self._limiter.call(caller.id, limit)
        except ResponseError:
            return None
        except (RedisError, OSError) as error:
            return UnavailableError(explain_queue(error).message, retry_after_s=_RETRY_AFTER_S)

    def _refuse(self, rate: Rate) -> ServiceError:
        self._metrics.quota_refusals.labels("calls").inc()
        detail = f"{rate.limit} calls a minute are allowed with this API key, and no more are left"
        error = FieldError(
            field="calls", value=f"{rate.limit - rate.remaining}", allowed=f"at most {rate.limit}"
        )
        return RateLimitedError(detail, error, retry_after_s=rate.wait_s)


def describe_rate(rate: Rate) -> dict[str, str]:
    """The quota, what is left of it, and in how many seconds one call more is allowed."""
    return {
        "RateLimit-Policy": f'"calls";q={rate.limit};w={WINDOW_S}',
        "RateLimit": f'"calls";r={rate.remaining};t={rate.wait_s}',
    }

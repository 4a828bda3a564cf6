"""Every call of an API key is counted, refused over the key's rate, and told how many are left."""

import re
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_schemas.keys import ApiKey
from service.errors import RateLimitedError, UnavailableError
from service.http.call_counter import CallCounter
from service.http.problems import answer
from service.quotas.known import KnownKeys

# The page and its parts are no calls, and neither are tiles: one look at a large picture takes hundreds.
_CALLS: Final = re.compile(r"/v1/(?!jobs/[^/]*/(?:tiles|image_files)/)")


class RateLimitMiddleware:
    """Inside of what finds out who calls: middleware is added from the inside out."""

    def __init__(self, app: ASGIApp, keys: KnownKeys, calls: CallCounter) -> None:
        self._app = app
        self._keys = keys
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: ApiKey | None = scope.get("caller")
        if caller is None:
            return await self._app(scope, receive, send)
        self._keys.note(caller)
        if not _CALLS.match(scope["path"].removeprefix(scope.get("root_path", ""))):
            return await self._app(scope, receive, send)
        try:
            told = await self._calls.count(caller)
        except (RateLimitedError, UnavailableError) as error:
            return await answer(scope, error)(scope, receive, send)

        async def send_told(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(told)
            await send(message)

        await self._app(scope, receive, send_told)

"""Callers with API keys, for tests of what depends on who calls."""

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api_schemas.keys import ApiKey, Quota


def make_key(key_id: str, *scopes: str, **limits: object) -> ApiKey:
    """A key with these limits, for reading and creating if no scopes are named."""
    return ApiKey.model_validate(
        {
            "id": key_id,
            "name": key_id,
            "scopes": scopes or ("create", "read"),
            "quota": Quota.model_validate(limits),
            "created_at": 0.0,
        }
    )


class CallerMiddleware:
    """Takes the id in `Authorization: Bearer` for a key."""

    def __init__(self, app: ASGIApp, keys: dict[str, ApiKey]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            name = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
            if name in self._keys:
                scope["caller"] = self._keys[name]
        await self._app(scope, receive, send)


def admit(app: FastAPI, keys: dict[str, ApiKey]) -> None:
    """Let these keys call."""
    app.add_middleware(CallerMiddleware, keys=keys)

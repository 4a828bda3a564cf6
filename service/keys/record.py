"""The record of an API key."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Scope = Literal["create", "read", "admin"]


class Quota(BaseModel):
    """What a key may use; None is unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calls_per_minute: int | None = None
    concurrent_jobs: int | None = None
    queued_jobs: int | None = None
    megapixel_steps_per_day: float | None = None
    store_bytes: int | None = None


class ApiKey(BaseModel):
    """All of a key but its secret."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    scopes: frozenset[Scope]
    quota: Quota = Quota()
    created_at: float
    revoked_at: float | None = None

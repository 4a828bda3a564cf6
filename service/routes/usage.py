"""What a key has used."""

import math
import time
from typing import Annotated

from fastapi import APIRouter, Query

from api_schemas.answers import CallUse, CountUse, Usage, WorkUse
from api_schemas.keys import ApiKey, Quota
from api_schemas.usage import DAY_S
from service.dependencies import Services, ServicesDep
from service.errors import FileMissingError, ForbiddenError, InvalidRequestError
from service.keys.caller import CallerDep
from service.openapi import problems
from service.quotas.rate import WINDOW_S
from service.quotas.usage import Used

router = APIRouter(tags=["system"])


@router.get(
    "/v1/usage",
    response_model=Usage,
    responses=problems(FileMissingError, ForbiddenError, InvalidRequestError),
)
async def show_usage(
    services: ServicesDep,
    caller: CallerDep,
    key_id: Annotated[
        str | None, Query(max_length=64, description="Of another key, for keys with the scope admin.")
    ] = None,
) -> Usage:
    """What the API key of this call has used of its limits."""
    key = await _choose_key(services, caller, key_id)
    used = await services.usage.read(key.id)
    return _describe(key.id, key.quota, used, time.time())


async def _choose_key(services: Services, caller: ApiKey | None, key_id: str | None) -> ApiKey:
    if caller is None:
        raise FileMissingError("usage is counted by API key, and this service runs without keys")
    if key_id in (None, caller.id):
        return caller
    if "admin" not in caller.scopes:
        raise ForbiddenError("only keys with the scope admin may ask for the usage of others")
    key = await services.known_keys.find(key_id)
    if key is None:
        raise FileMissingError(f"no API key {key_id[:64]!r}")
    return key


def _describe(key_id: str, quota: Quota, used: Used, now: float) -> Usage:
    calls = math.ceil(used.call_s * (quota.calls_per_minute or 0) / WINDOW_S - 1e-6)
    return Usage(
        key_id=key_id,
        calls=CallUse(
            used=calls,
            limit=quota.calls_per_minute,
            window_s=WINDOW_S,
            free_at=now + used.call_s if calls else None,
        ),
        concurrent_jobs=CountUse(used=used.running_jobs, limit=quota.concurrent_jobs),
        queued_jobs=CountUse(used=used.queued_jobs, limit=quota.queued_jobs),
        megapixel_steps=WorkUse(
            used=used.megapixel_steps,
            limit=quota.megapixel_steps_per_day,
            window_s=DAY_S,
            free_at=used.steps_free_at or None,
        ),
        store_bytes=CountUse(used=used.store_bytes, limit=quota.store_bytes),
    )

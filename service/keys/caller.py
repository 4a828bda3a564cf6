"""The key that a request was sent with."""

from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from service.keys.record import ApiKey


def get_caller(connection: HTTPConnection) -> ApiKey | None:
    """The caller's key; None where the service runs without keys."""
    return cast("ApiKey | None", connection.scope.get("caller"))


CallerDep = Annotated[ApiKey | None, Depends(get_caller)]

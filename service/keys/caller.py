"""Who calls: the API key of a request, as the middleware has found it."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from service.keys.record import ApiKey


def get_caller(connection: HTTPConnection) -> ApiKey | None:
    """The key of this request; None where the service runs without keys."""
    return connection.scope.get("caller")


CallerDep = Annotated[ApiKey | None, Depends(get_caller)]

"""Who calls: the API key of a request, as the middleware has found it."""

from typing import Annotated, Final

from fastapi import Depends
from starlette.requests import HTTPConnection

from api_schemas.keys import ApiKey

CALLER: Final = "caller"
CREDENTIAL: Final = "chorale.credential"
KEYS_REQUIRED: Final = "chorale.keys_required"


def get_caller(connection: HTTPConnection) -> ApiKey | None:
    """The key of this request; None where the service runs without keys."""
    return connection.scope.get(CALLER)


CallerDep = Annotated[ApiKey | None, Depends(get_caller)]


def key_id_of(caller: ApiKey | None) -> str:
    """Whose jobs it makes: empty where the service runs without keys."""
    return caller.id if caller else ""


def reaches(caller: ApiKey | None, key_id: str) -> bool:
    """Whether a job of the key with this id is there for the caller; to others it is as if there were none."""
    return reaches_all(caller) or key_id == key_id_of(caller)


def reaches_all(caller: ApiKey | None) -> bool:
    """Whether the jobs of all keys are there for the caller, and those from before there were keys."""
    return caller is None or "admin" in caller.scopes


def is_operator(connection: HTTPConnection) -> bool:
    """Whether the caller may know how the service itself is: everybody where no keys are required."""
    caller = get_caller(connection)
    return "admin" in caller.scopes if caller else not connection.scope.get(KEYS_REQUIRED, True)

"""Which scope a request needs: every path needs one, unless it is listed here."""

from typing import Final

from api_schemas.keys import Scope

# The page and its files hold nothing of anybody; signed links are credentials themselves.
_OPEN: Final = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v1/session"})
_OPEN_FOLDERS: Final = ("/viewer/", "/v1/files/")
_ADMIN: Final = frozenset({"/metrics"})
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_FOLLOWED: Final = ("/ws", "/events")
_JOB: Final = "/v1/jobs/"


def find_needed_scope(method: str, path: str) -> Scope | None:
    """None if no key is needed. What only reads needs `read`, all else `create`.

    Args:
        method: GET for a WebSocket.
        path: below the root path.
    """
    if path in _OPEN or path.startswith(_OPEN_FOLDERS):
        return None
    if path in _ADMIN:
        return "admin"
    is_ticket = path.startswith(_JOB) and path.endswith("/ticket")
    return "read" if method in _READS or is_ticket else "create"


def find_followed_job(path: str) -> str | None:
    """The job whose event stream this is, which a ticket opens."""
    if not (path.startswith(_JOB) and path.endswith(_FOLLOWED)):
        return None
    return path.removeprefix(_JOB).rpartition("/")[0]

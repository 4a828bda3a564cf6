"""Lets a request in by its API key, by the cookie of a browser that has signed in, or by a ticket."""

from typing import Final

from redis.exceptions import RedisError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ScopeMissingError, ServiceError, UnauthenticatedError
from service.http.bodies import bound_keyless
from service.http.problems import answer, answer_unavailable
from service.http.sites import is_own_page
from service.keys.caller import CALLER, CREDENTIAL, KEYS_REQUIRED
from service.keys.doors import find_followed_job, find_needed_scope
from service.keys.store import NOBODY, Credential, Holder, KeyStore

COOKIE: Final = "chorale_session"
TICKET: Final = "ticket"
# They answer more to those with a key, and without one as ever.
_TOLD_MORE: Final = frozenset({"/readyz", "/v1/session"})
_NEEDED: Final = (
    "this service needs an API key, as in `Authorization: Bearer chorale_...`;"
    " its operator makes one by `chorale keys create`, and clients of chorale read CHORALE_API_KEY"
)
_REFUSED: Final = "this API key, session or ticket is not accepted: it is unknown, revoked, used up or over"


class KeyMiddleware:
    """Puts the caller's `ApiKey` into `scope["caller"]`; nothing that is not listed as open gets past it without one.

    Where no keys are required it does nothing: there is no caller.
    """

    def __init__(self, app: ASGIApp, keys: KeyStore) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        path = name_path(scope)
        try:
            refusal = await self._admit(scope, path)
        except (RedisError, OSError) as error:
            if not self._passes_without_queue(path):
                return await answer_unavailable(scope, error)(scope, receive, send)
            refusal = None
        if refusal is not None:
            return await answer(scope, refusal)(scope, receive, send)
        scope[KEYS_REQUIRED] = self._keys.are_required
        if not self._keys.are_required:
            return await self._app(scope, receive, send)
        bounded = receive if CALLER in scope else bound_keyless(scope, receive)
        await self._app(scope, bounded, keep_private(send))

    async def _admit(self, scope: Scope, path: str) -> ServiceError | None:
        """Why it is refused, if it is."""
        needed = find_needed_scope(scope.get("method", "GET"), path)
        if needed is None and path not in _TOLD_MORE:
            return None
        comes_with = {"authorization", "cookie"}.intersection(Headers(scope=scope))
        if not await self._keys.find_whether_required(is_given=bool(comes_with)):
            return None
        is_given, credential = await self._find_credential(scope, path)
        if credential is None:
            if needed is None or await self._keys.are_gone():
                return None
            return UnauthenticatedError(_REFUSED if is_given else _NEEDED, given=is_given)
        caller = credential.key
        if needed is not None and needed not in caller.scopes:
            return ScopeMissingError(needed, caller.scopes)
        scope[CALLER], scope[CREDENTIAL] = caller, credential
        return None

    async def _find_credential(self, scope: Scope, path: str) -> tuple[bool, Credential | None]:
        """Whether there is one, and what it is worth. The first kind that is there counts."""
        connection = HTTPConnection(scope)
        if given := connection.headers.getlist("authorization"):
            return True, await self._keys.find_by_key(read_bearer(given))
        if tickets := connection.query_params.getlist(TICKET):
            job_id = find_followed_job(path)
            if job_id is None or len(tickets) > 1:
                return True, None
            return True, await self._keys.find_by_ticket(tickets[0], job_id)
        cookie = connection.cookies.get(COOKIE)
        # A page of another port of this machine is of the same site: its requests have our cookie too.
        if cookie and is_own_page(connection.headers, connection.headers.get("host", "")):
            return True, await self._keys.find_by_session(cookie)
        return False, None

    def _passes_without_queue(self, path: str) -> bool:
        """Readiness and metrics say that the queue server is away."""
        return path == "/readyz" or (path == "/metrics" and not self._keys.are_required)


def keep_private(send: Send) -> Send:
    """Have caches give no answer to the bearer of another key: on the way back browsers ask them first."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.add_vary_header("Authorization, Cookie")
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_marked


def get_credential(connection: HTTPConnection) -> Credential | None:
    """By what this request got in; None where the service runs without keys."""
    return connection.scope.get(CREDENTIAL)


def get_holder(connection: HTTPConnection) -> Holder:
    """Whose key it was, and which of its secrets: when that is accepted no more, streams end."""
    credential = get_credential(connection)
    return credential.holder if credential else NOBODY


def name_path(scope: Scope) -> str:
    """Below the root path, as routes have it."""
    path, root = scope["path"], scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def read_bearer(given: list[str]) -> str:
    """The token of the header `Authorization`; empty if it is of another form (RFC 6750, 2.1) or there are several."""
    scheme, _, token = given[0].partition(" ")
    return token.strip(" ") if len(given) == 1 and scheme.lower() == "bearer" else ""

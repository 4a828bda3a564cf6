"""Signing in by an API key, for browsers: the key is exchanged for a cookie that scripts cannot read."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api_schemas.keys import Session
from service.dependencies import ServicesDep
from service.errors import BadRequestError, InvalidRequestError, UnauthenticatedError
from service.keys.caller import KEYS_REQUIRED, CallerDep
from service.keys.middleware import COOKIE
from service.keys.store import SESSION_LIFETIME_S
from service.openapi import problems

router = APIRouter(tags=["session"])


class SignIn(BaseModel):
    """An API key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(description="As `chorale keys create` has shown it.")


@router.get("/v1/session", response_model=Session, responses=problems())
async def show_session(request: Request, caller: CallerDep) -> Session:
    """Whether keys are required, and whose key this request has."""
    return Session(keys_required=bool(request.scope.get(KEYS_REQUIRED)), key=caller)


@router.post(
    "/v1/session",
    response_model=Session,
    responses=problems(BadRequestError, InvalidRequestError, UnauthenticatedError),
)
async def sign_in(
    body: SignIn, request: Request, response: Response, caller: CallerDep, services: ServicesDep
) -> Session:
    """Exchange a key for the cookie of a session, which ends after seven days, with the key, or with 20 newer ones."""
    credential = await services.keys.find_by_key(body.key.strip())
    if credential is None:
        raise UnauthenticatedError("this is no API key of this service, or it was revoked", given=True)
    if caller is None or caller.id != credential.key.id:  # else it was counted on the way in
        response.headers.update(await services.calls.count(credential.key))
    response.set_cookie(
        COOKIE,
        await services.keys.open_session(credential),
        max_age=SESSION_LIFETIME_S,
        path=_cookie_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return Session(keys_required=bool(request.scope.get(KEYS_REQUIRED)), key=credential.key)


@router.delete("/v1/session", status_code=204, response_class=Response, responses=problems())
async def sign_out(request: Request, services: ServicesDep) -> Response:
    """End the session of this browser."""
    if word := request.cookies.get(COOKIE):
        await services.keys.close_session(word)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path=_cookie_path(request), httponly=True, samesite="strict")
    return response


def _cookie_path(request: Request) -> str:
    return request.scope.get("root_path") or "/"

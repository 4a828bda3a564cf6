"""Jobs that are derived from a finished one."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from secrets import token_hex
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import ValidationError

from api_schemas.answers import JobPage, JobView
from api_schemas.derived import ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.errors import FieldError
from api_schemas.generation import GenerationRequest
from api_schemas.job import Job
from api_schemas.refused_values import list_refused
from service.dependencies import LoadedJob, ServicesDep
from service.errors import (
    BadRequestError,
    ConflictError,
    IdempotencyMismatchError,
    InvalidRequestError,
    JobNotFoundError,
    NoModelError,
    NotReadyError,
    QueueFullError,
    QuotaExceededError,
    ResultNeverError,
)
from service.jobs.submission import Submission
from service.keys.caller import CallerDep
from service.openapi import problems
from service.routes.images import require_result
from service.routes.jobs import IdempotencyKey, submit_as

router = APIRouter(tags=["jobs"])
_PROBLEMS = problems(
    JobNotFoundError,
    NotReadyError,
    ResultNeverError,
    BadRequestError,
    InvalidRequestError,
    IdempotencyMismatchError,
    ConflictError,
    QueueFullError,
    QuotaExceededError,
    NoModelError,
)


async def take_parent(job: LoadedJob) -> Job:
    require_result(job)
    return job


Parent = Annotated[Job, Depends(take_parent)]


@router.post("/v1/jobs/{job_id}/reroll", status_code=202, response_model=JobView, responses=_PROBLEMS)
async def reroll(
    body: RerollRequest,
    parent: Parent,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Queue a job that inpaints a part of this job's picture; every pixel outside of the part stays (a JPEG is encoded again)."""
    with _explained():
        request = body.derive(parent.id, parent.request)
    with _renamed(_name_region):
        return await _submit(
            submit_as(caller, Submission(request, parent=parent)), response, services, idempotency_key
        )


@router.post("/v1/jobs/{job_id}/extend", status_code=202, response_model=JobView, responses=_PROBLEMS)
async def extend(
    body: ExtendRequest,
    parent: Parent,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Queue a job that makes more picture around this job's, whose own pixels stay (a JPEG is encoded again)."""
    with _explained():
        request = body.derive(parent.id, parent.request)
    with _renamed(partial(_name_sides, body)):
        return await _submit(
            submit_as(caller, Submission(request, parent=parent)), response, services, idempotency_key
        )


@router.post("/v1/jobs/{job_id}/variations", status_code=202, response_model=JobPage, responses=_PROBLEMS)
async def vary(
    body: VariationsRequest,
    parent: Parent,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> JobPage:
    """Queue jobs that ask for the same with neighbouring initial noise."""
    token = idempotency_key or token_hex(16)
    with _explained():
        requests = list(body.derive(parent.request, token))
    submissions = [
        submit_as(caller, Submission(request, parent=parent, siblings=body.count)) for request in requests
    ]
    jobs = await services.intake.take_all(submissions, token)
    return JobPage(data=await services.views.show_all(jobs), next=None)


@contextmanager
def _explained() -> Generator[None]:
    """The request that is derived may be refused, though what was asked for is well formed: too wide, say."""
    try:
        yield
    except ValidationError as error:
        raise InvalidRequestError(list_refused(error, GenerationRequest)) from error


@contextmanager
def _renamed(name: Callable[[FieldError], Iterable[FieldError]]) -> Generator[None]:
    """What the request of the new job is refused for, by the fields that the client has sent."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError([each for own in error.errors for each in name(own)]) from error


def _name_region(error: FieldError) -> Iterator[FieldError]:
    """The request that it makes has it as its mask."""
    field = "region" + error.field.removeprefix("mask") if error.field.startswith("mask") else error.field
    yield error.model_copy(update={"field": field})


def _name_sides(asked: ExtendRequest, error: FieldError) -> Iterator[FieldError]:
    """The sides that it grows by, where it may not become so large: a seamless one, say."""
    sides = asked.list_grown(error.field)
    axis = error.field.removesuffix("_px")
    allowed = f"what makes the picture's {axis}, {error.value} px with this, {error.allowed}"
    yield from (FieldError(field=side, value=str(px), allowed=allowed) for side, px in sides)
    if not sides:
        yield error


async def _submit(
    submission: Submission, response: Response, services: ServicesDep, key: str | None
) -> JobView:
    job = await services.intake.take(submission, key)
    view = await services.views.show(job)
    response.headers["Location"] = view.urls.self
    return view

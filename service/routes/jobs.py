"""Create, get, list and cancel jobs."""

import base64
import binascii
import logging
import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api_schemas.answers import JobPage, JobView
from api_schemas.errors import FieldError
from api_schemas.job import TERMINAL, Job, JobStatus
from api_schemas.keys import ApiKey
from service.dependencies import LoadedJob, ServicesDep, SlotDep
from service.errors import (
    BadRequestError,
    ConflictError,
    IdempotencyMismatchError,
    InvalidFormError,
    InvalidRequestError,
    JobNotFoundError,
    JobUnreadableError,
    NoModelError,
    NoSpaceError,
    QueueFullError,
    QuotaExceededError,
)
from service.http.bodies import release_body
from service.jobs.submission import Submission, read_submission
from service.keys.caller import CallerDep, key_id_of, reaches, reaches_all
from service.keys.middleware import get_holder
from service.openapi import SUBMISSION_BODY, problems

MAX_WAIT_S: Final = 60
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})\"?(?:$|[,;\s])", re.IGNORECASE)
# A status filter reads at most this many jobs for one page; `next` continues from there.
_SCAN_LIMIT: Final = 1000

log = logging.getLogger(__name__)
router = APIRouter(tags=["jobs"])
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="For one day, the same key and body return the same job.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(description="`wait=N`: wait up to N seconds (at most 60) for the job to end before answering."),
]


async def take_submission(
    request: Request, services: ServicesDep, caller: CallerDep
) -> AsyncGenerator[Submission]:
    settings = services.settings
    submission = await read_submission(
        request, settings.max_body_bytes, settings.max_picture_bytes, settings.work_dir / "uploads"
    )
    try:
        # A body may come so slowly that its key is revoked meanwhile.
        await services.keys.require(get_holder(request))
        yield submit_as(caller, submission)
    finally:
        submission.close()


def submit_as(caller: ApiKey | None, submission: Submission) -> Submission:
    """The submission of this caller, whose job it makes."""
    return replace(submission, key_id=key_id_of(caller), reaches_all=reaches_all(caller))


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=JobView,
    openapi_extra={"requestBody": SUBMISSION_BODY},
    responses={
        200: {"model": JobView, "description": "The job ended within the time of `Prefer: wait`."},
        **problems(
            BadRequestError,
            InvalidFormError,
            ConflictError,
            InvalidRequestError,
            IdempotencyMismatchError,
            JobUnreadableError,
            QueueFullError,
            QuotaExceededError,
            NoModelError,
            NoSpaceError,
        ),
    },
)
async def create_job(
    request: Request,
    submission: Annotated[Submission, Depends(take_submission)],
    response: Response,
    services: ServicesDep,
    slot: SlotDep,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> JobView:
    """Queue a job for one picture, as JSON, or as a multipart form of the part `request` (JSON) and the pictures. Follow it at `urls.ws` or `urls.events`; fetch the picture at `urls.result`."""
    job = await services.intake.take(submission, idempotency_key)
    submission.close()  # not only after the wait
    release_body(request.scope)
    wait_s, holder = _read_wait(prefer), get_holder(request)
    if wait_s:
        with slot.lent():
            await services.events.wait(job, wait_s, holder)
        await services.keys.require(holder)
        job = await services.jobs.get(job.id) or job
        response.headers["Preference-Applied"] = f"wait={wait_s}"
        response.status_code = 200 if job.status in TERMINAL else 202
    view = await services.views.show(job)
    response.headers["Location"] = view.urls.self
    return view


@router.get(
    "/v1/jobs/{job_id}",
    response_model=JobView,
    responses=problems(JobNotFoundError, JobUnreadableError, InvalidRequestError),
)
async def get_job(job: LoadedJob, services: ServicesDep, caller: CallerDep) -> JobView:
    """The current state of one job."""
    view = await services.views.show(job)
    children = await services.jobs.list_children(job.id)
    if not reaches_all(caller):  # an operator may have made one of it
        found = await services.jobs.get_many(children)
        children = [each.id for each in found if isinstance(each, Job) and reaches(caller, each.key_id)]
    return view.model_copy(update={"children": children})


@router.get("/v1/jobs", response_model=JobPage, responses=problems(InvalidRequestError))
async def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the previous page.")] = None,
    status: Annotated[JobStatus | None, Query()] = None,
) -> JobPage:
    """List jobs of this key, or of all where no keys are used, newest first. New jobs do not shift later pages. A page may be short; the last has `next: null`."""
    before, whose = read_cursor(cursor) if cursor else None, "" if reaches_all(caller) else key_id_of(caller)
    jobs, position = await _find_page(services, before, limit, status, whose)
    next_cursor = write_cursor(position) if position else None
    return JobPage(data=await services.views.show_all(jobs), next=next_cursor)


@router.post(
    "/v1/jobs/{job_id}/cancel",
    response_model=JobView,
    responses={
        202: {"model": JobView, "description": "The job is running and will stop within one step."},
        **problems(JobNotFoundError, JobUnreadableError, InvalidRequestError),
    },
)
async def cancel_job(job: LoadedJob, response: Response, services: ServicesDep) -> JobView:
    """Cancel a job. A job that has already ended is not changed, so this may be repeated."""
    log.info("job %s, %s, is to be canceled", job.id, job.status)
    job = await services.jobs.cancel(job, "canceled by a client")
    if job.status in TERMINAL:
        await services.queue.remove(job)
    else:
        response.status_code = 202
    return await services.views.show(job)


async def _find_page(
    services: ServicesDep, before: tuple[float, str] | None, limit: int, status: JobStatus | None, key_id: str
) -> tuple[list[Job], tuple[float, str] | None]:
    """Up to `limit` jobs, and the position of the last one looked at if there are more."""
    found: list[Job] = []
    scanned = 0
    while scanned < _SCAN_LIMIT:
        rows = await services.jobs.list_older(before, limit + 1, key_id)
        jobs = await services.jobs.get_many([job_id for _, job_id in rows])
        for position, job in list(zip(rows, jobs, strict=True))[:limit]:
            before = position
            if isinstance(job, Job) and status in (None, job.status):
                found.append(job)
                if len(found) == limit:
                    break
        if len(rows) <= limit and before in (None, *rows[-1:]):
            return found, None
        if len(found) == limit:
            break
        scanned += limit
    return found, before


def _read_wait(prefer: str | None) -> int:
    match = _WAIT.search(prefer or "")
    return min(int(match[1]), MAX_WAIT_S) if match else 0


def write_cursor(position: tuple[float, str]) -> str:
    created_at, job_id = position
    return base64.urlsafe_b64encode(f"{created_at!r} {job_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[float, str]:
    """Inverse of `write_cursor`.

    Raises:
        InvalidRequestError: this is no cursor of ours.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        created_at, job_id = text.split(" ")
        position = float(created_at), job_id
    except (binascii.Error, ValueError):
        position = None
    if position is None or not position[0] < float("inf") or not position[0] >= 0:
        allowed = "what `next` of a page said"
        raise InvalidRequestError([FieldError(field="cursor", value=ascii(cursor)[:200], allowed=allowed)])
    return position

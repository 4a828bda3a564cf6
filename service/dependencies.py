"""FastAPI dependencies. Everything is built once in main."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Query
from redis.asyncio import Redis
from starlette.requests import HTTPConnection, Request

from api_schemas.errors import FieldError
from api_schemas.job import Job
from service.background import Background
from service.catalog import ModelCatalog
from service.disk_space import DiskSpace
from service.errors import InvalidRequestError, JobNotFoundError
from service.event_stream import EventStream
from service.http.call_counter import CallCounter
from service.http.shedding import SLOT, Slot
from service.http.signed_urls import LinkSigner
from service.image_store import ImageStore
from service.images.deep_zoom import PreviewCanvas
from service.job_queue import JobQueue
from service.job_store import JobStore
from service.jobs.admission import Admission
from service.jobs.dispatcher import Dispatcher
from service.jobs.intake import Intake
from service.jobs.views import JobViews
from service.keys.caller import CallerDep, reaches
from service.keys.store import KeyStore
from service.messages import parse
from service.metrics import Metrics
from service.openai_api.attempts import Attempts
from service.quotas.known import KnownKeys
from service.quotas.usage import UsageStore
from service.settings import ServiceSettings
from service.webhooks.deliveries import Deliveries
from service.webhooks.endpoints import Endpoints


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the service, one of each, shared by all requests of a process."""

    settings: ServiceSettings
    redis: Redis
    keys: KeyStore
    jobs: JobStore
    queue: JobQueue
    catalog: ModelCatalog
    admission: Admission
    dispatcher: Dispatcher
    intake: Intake
    attempts: Attempts
    views: JobViews
    events: EventStream
    images: ImageStore
    space: DiskSpace
    known_keys: KnownKeys
    calls: CallCounter
    usage: UsageStore
    previews: PreviewCanvas
    links: LinkSigner
    webhooks: Endpoints
    deliveries: Deliveries
    metrics: Metrics


def get_services(connection: HTTPConnection) -> Services:
    return cast(Services, connection.app.state.services)


ServicesDep = Annotated[Services, Depends(get_services)]


def get_background(request: Request) -> Background:
    return cast(Background, request.app.state.background)


BackgroundDep = Annotated[Background, Depends(get_background)]


def get_slot(request: Request) -> Slot:
    return cast(Slot, request.scope[SLOT])


SlotDep = Annotated[Slot, Depends(get_slot)]


async def load_job(
    services: ServicesDep,
    caller: CallerDep,
    job_id: Annotated[str, Path(description="Job id, as `POST /v1/jobs` returned it.")],
) -> Job:
    """The record of the job in the path.

    Raises:
        JobNotFoundError: there is none, or it is another key's.
    """
    # The service draws all ids: anything of another form is not looked up.
    job = await services.jobs.get(job_id) if job_id.isascii() and job_id.isalnum() else None
    if job is None or not reaches(caller, job.key_id):
        raise JobNotFoundError(job_id)
    return job


LoadedJob = Annotated[Job, Depends(load_job)]


def check_after(
    after: Annotated[str | None, Query(description="`seq` of the last event already received.")] = None,
) -> str | None:
    """The position to continue from.

    Raises:
        InvalidRequestError: this is no `seq`.
    """
    return require_seq("after", after)


After = Annotated[str | None, Depends(check_after)]


def require_seq(field: str, value: str | None) -> str | None:
    """The value, if it has the form of a `seq`.

    Raises:
        InvalidRequestError: it has not.
    """
    if value is None or parse(value) is not None:
        return value
    allowed = "the seq of an event, such as 1700000000000-0"
    raise InvalidRequestError([FieldError(field=field, value=ascii(value)[:200], allowed=allowed)])

"""The webhook of an API key, and the deliveries of a job."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from api_schemas.job import Job
from api_schemas.webhook import Delivery, DeliveryList, Webhook, WebhookView
from service.dependencies import LoadedJob, ServicesDep
from service.errors import (
    BadRequestError,
    ForbiddenError,
    InvalidRequestError,
    JobNotFoundError,
    JobUnreadableError,
    WebhookNotFoundError,
)
from service.keys.caller import CallerDep, key_id_of, reaches_all
from service.openapi import problems

router = APIRouter(tags=["webhooks"])


def choose_owner(
    caller: CallerDep,
    key_id: Annotated[
        str | None,
        Query(
            max_length=64,
            description="Of another key, for keys with the scope admin; empty: set before there were keys.",
        ),
    ] = None,
) -> str:
    """Id of the key whose webhook it is.

    Raises:
        ForbiddenError: it is another's.
    """
    own = key_id_of(caller)
    if key_id not in (None, own) and not reaches_all(caller):
        raise ForbiddenError("only keys with the scope admin may reach the webhooks of others")
    return own if key_id is None else key_id


Owner = Annotated[str, Depends(choose_owner)]
_JOB_PROBLEMS = (JobNotFoundError, JobUnreadableError, InvalidRequestError)


@router.get(
    "/v1/webhook",
    response_model=WebhookView,
    responses=problems(ForbiddenError, InvalidRequestError, WebhookNotFoundError),
)
async def get_webhook(services: ServicesDep, owner: Owner) -> WebhookView:
    """The webhook of this API key, which is told of all its jobs."""
    return await services.webhooks.show(owner)


@router.put(
    "/v1/webhook", response_model=WebhookView, responses=problems(BadRequestError, InvalidRequestError)
)
async def set_webhook(
    body: Webhook, response: Response, services: ServicesDep, caller: CallerDep
) -> WebhookView:
    """Set the webhook of this API key. A secret that the service draws is in this answer alone."""
    response.headers["Cache-Control"] = "no-store"
    return await services.webhooks.set(body, caller.id if caller else "")


@router.delete("/v1/webhook", status_code=204, responses=problems(ForbiddenError, InvalidRequestError))
async def delete_webhook(services: ServicesDep, owner: Owner) -> None:
    """Remove the webhook of this API key; what is not yet delivered to it is not sent."""
    await services.webhooks.remove(owner)
    async for page in services.deliveries.find_due():
        notices = [notice for notice in page if notice.endpoint == "key"]
        jobs = await services.jobs.get_many([notice.job_id for notice in notices])
        pairs = zip(notices, jobs, strict=True)
        await services.deliveries.drop(
            notice for notice, job in pairs if isinstance(job, Job) and job.key_id == owner
        )


@router.get("/v1/jobs/{job_id}/deliveries", response_model=DeliveryList, responses=problems(*_JOB_PROBLEMS))
async def list_deliveries(job: LoadedJob, services: ServicesDep) -> DeliveryList:
    """What webhooks were told of this job, and what they answered. It is kept as long as the job."""
    return DeliveryList(data=await services.deliveries.list(job.id))


@router.post(
    "/v1/jobs/{job_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    response_model=Delivery,
    responses=problems(*_JOB_PROBLEMS, WebhookNotFoundError),
)
async def redeliver(
    job: LoadedJob,
    delivery_id: Annotated[str, Path(description="`id` of a delivery: its `webhook-id`.")],
    services: ServicesDep,
) -> Delivery:
    """Send a delivery again, now, with the same `webhook-id`. An endpoint that was disabled gets events again."""
    return await services.deliveries.redeliver(job.id, job.key_id, delivery_id)

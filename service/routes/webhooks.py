"""The webhook of an API key, and the deliveries of a job."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from api_schemas.webhook import Delivery, DeliveryList, Webhook, WebhookView
from service.dependencies import LoadedJob, ServicesDep
from service.errors import InvalidRequestError, JobNotFoundError, JobUnreadableError, WebhookNotFoundError
from service.keys.caller import CallerDep
from service.openapi import problems

router = APIRouter(tags=["webhooks"])
_JOB_PROBLEMS = (JobNotFoundError, JobUnreadableError, InvalidRequestError)


@router.get("/v1/webhook", response_model=WebhookView, responses=problems(WebhookNotFoundError))
async def get_webhook(services: ServicesDep, caller: CallerDep) -> WebhookView:
    """The webhook of this API key, which is told of all its jobs."""
    return await services.webhooks.show(caller.id if caller else "")


@router.put("/v1/webhook", response_model=WebhookView, responses=problems(InvalidRequestError))
async def set_webhook(
    body: Webhook, response: Response, services: ServicesDep, caller: CallerDep
) -> WebhookView:
    """Set the webhook of this API key. A secret that the service draws is in this answer alone."""
    response.headers["Cache-Control"] = "no-store"
    return await services.webhooks.set(body, caller.id if caller else "")


@router.delete("/v1/webhook", status_code=204, responses=problems())
async def delete_webhook(services: ServicesDep, caller: CallerDep) -> None:
    """Remove the webhook of this API key; what is not yet delivered to it is not sent."""
    await services.webhooks.remove(caller.id if caller else "")


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

"""OpenAI's Images API, for its unmodified clients."""

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from api_schemas.fields import MAX_PROMPT
from api_schemas.generation import PicturePart
from api_schemas.job import Job
from service.dependencies import ServicesDep, SlotDep
from service.errors import (
    BadRequestError,
    ConflictError,
    IdempotencyMismatchError,
    InvalidFormError,
    InvalidRequestError,
    JobCanceledError,
    JobFailedError,
    JobNotFoundError,
    JobUnreadableError,
    NoModelError,
    NoSpaceError,
    QueueFullError,
    QuotaExceededError,
    ResultExpiredError,
    ResultNeverError,
)
from service.http.bodies import release_body
from service.http.problems import describe_for_openai
from service.images.received import ReceivedPicture
from service.keys.caller import CallerDep
from service.keys.middleware import get_holder
from service.openai_api.answers import Answers, ImagesAnswer
from service.openai_api.edit_form import Edit, read_edit
from service.openai_api.long_response import Body, LongResponse, answer_when_done
from service.openai_api.parameters import ImageParameters
from service.openai_api.stream import ImageEvents, Kind
from service.openai_api.translate import explained, write_submissions
from service.openai_api.waiting import Waiting
from service.openapi import EDIT_BODY, Responses, openai_failures
from service.routes.jobs import IdempotencyKey

router = APIRouter(tags=["openai"])
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_RESPONSES: Responses = {
    200: {
        "model": ImagesAnswer,
        "description": "All pictures. With `stream`, server-sent events, of which the last of each picture holds it.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    **openai_failures(
        BadRequestError,
        InvalidFormError,
        InvalidRequestError,
        IdempotencyMismatchError,
        ConflictError,
        ResultNeverError,
        JobCanceledError,
        ResultExpiredError,
        JobNotFoundError,
        JobFailedError,
        JobUnreadableError,
        QueueFullError,
        QuotaExceededError,
        NoModelError,
        NoSpaceError,
    ),
}
RetryCount = Annotated[
    int,
    Header(
        alias="X-Stainless-Retry-Count",
        ge=0,
        description="As OpenAI's clients send it. Above 0, and without an `Idempotency-Key`, the request is the latest of its content.",
    ),
]


async def take_edit(request: Request, services: ServicesDep) -> AsyncGenerator[Edit]:
    settings = services.settings
    with explained():
        edit = await read_edit(
            request, settings.max_body_bytes, settings.max_picture_bytes, settings.work_dir / "uploads"
        )
    try:
        # A body may come so slowly that its key is revoked meanwhile.
        await services.keys.require(get_holder(request))
        yield edit
    finally:
        edit.close()


class Door:
    """What both routes do with a request.

    Args:
        repeated: whether its client says that it sent it before.
    """

    def __init__(
        self,
        request: Request,
        services: ServicesDep,
        slot: SlotDep,
        caller: CallerDep,
        idempotency_key: IdempotencyKey = None,
        retry_count: RetryCount = 0,
    ) -> None:
        self._request, self._services, self._slot = request, services, slot
        self._key_id = caller.id if caller else ""
        self._idempotency_key, self._repeated = idempotency_key, retry_count > 0

    async def make(
        self,
        kind: Kind,
        asked: ImageParameters,
        files: Mapping[PicturePart, ReceivedPicture],
        free: Callable[[], None],
    ) -> Response:
        """Queue the jobs, wait for them and answer; `free` ends the files that came."""
        services = self._services
        jobs = await self._take(asked, files)
        free()
        release_body(self._request.scope)
        waiting = Waiting(services.events, services.jobs, services.keys, get_holder(self._request))
        answers = Answers(services.images, asked, self._link)
        headers = _describe(asked, jobs)
        if asked.stream:
            events = ImageEvents(
                kind,
                answers,
                services.previews,
                waiting,
                services.settings.ping_interval_s,
                _write_failure,
            )
            return LongResponse(events.write_all(jobs), headers, "text/event-stream")

        async def work() -> Body:
            return await answers.write_all(await waiting.await_all(jobs))

        with self._slot.lent():
            return await answer_when_done(work(), services.settings.ping_interval_s, headers, _write_failure)

    async def _take(self, asked: ImageParameters, files: Mapping[PicturePart, ReceivedPicture]) -> list[Job]:
        services = self._services
        card = await services.admission.find_card(asked.model)
        submissions = write_submissions(asked, card, files, self._key_id)
        key = self._idempotency_key
        if key is None:
            content = hashlib.sha256((self._key_id + submissions[0].fingerprint()).encode()).hexdigest()
            key = await services.attempts.name(content, repeated=self._repeated)
        with explained():
            return await services.intake.take_all(submissions, f"openai {key}")

    def _link(self, job: Job) -> str:
        """Absolute, as its client has called this server."""
        url, path = self._request.url, self._services.links.sign(job.id)
        return f"{url.scheme}://{url.netloc}{self._services.settings.root_path}{path}"


DoorDep = Annotated[Door, Depends(Door)]


@router.post("/v1/images/generations", response_class=Response, responses=_RESPONSES)
async def generate_images(asked: ImageParameters, door: DoorDep) -> Response:
    """`images.generate` of OpenAI's clients. Pictures are jobs as any; a client that leaves does not cancel them."""
    return await door.make("image_generation", asked, {}, lambda: None)


@router.post(
    "/v1/images/edits",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra={"requestBody": EDIT_BODY},
)
async def edit_image(edit: Annotated[Edit, Depends(take_edit)], door: DoorDep) -> Response:
    """`images.edit` of OpenAI's clients: the first picture is edited, where its mask is transparent, a second gives the style."""
    return await door.make("image_edit", edit.parameters, edit.files, edit.close)


def _describe(asked: ImageParameters, jobs: list[Job]) -> dict[str, str]:
    headers = {"Chorale-Model": jobs[0].request.model, "Chorale-Jobs": ", ".join(job.id for job in jobs)}
    if len(asked.prompt) > MAX_PROMPT:
        headers["Chorale-Prompt-Cut"] = f"{MAX_PROMPT} of {len(asked.prompt)} characters were read"
    return headers


def _write_failure(error: Exception) -> bytes:
    return describe_for_openai(error).model_dump_json().encode()

"""The picture: whole, by signed link, and as a deep zoom, also while the job runs."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api_schemas.events import Result
from api_schemas.job import TERMINAL, Job
from api_schemas.pyramid import Pyramid, Window
from api_schemas.wire import PYRAMID_FOLDER
from service.dependencies import LoadedJob, ServicesDep
from service.errors import (
    FileMissingError,
    ForbiddenError,
    InvalidRequestError,
    JobNotFoundError,
    JobUnreadableError,
    NotReadyError,
    RangeNotSatisfiableError,
    ResultDamagedError,
    ResultExpiredError,
    ResultNeverError,
)
from service.http.files import send_file
from service.openapi import Responses, problems

_NOT_READY_RETRY_S = 2
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
_CHANGING = {"Cache-Control": "no-store"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PICTURE: dict[str, object] = dict.fromkeys(("image/png", "image/jpeg", "image/webp", "image/tiff"), _BINARY)
_FILE_RESPONSES: Responses = {
    200: {"description": "The picture.", "content": _PICTURE},
    206: {"description": "A byte range of the picture.", "content": _PICTURE},
    302: {"description": "Redirect to an expiring address of the object store."},
    304: {"description": "The client's copy is current."},
}
_FILE_PROBLEMS = (
    JobNotFoundError,
    JobUnreadableError,
    InvalidRequestError,
    NotReadyError,
    ResultNeverError,
    ResultExpiredError,
    ResultDamagedError,
    RangeNotSatisfiableError,
)
_TILE_RESPONSES: Responses = {
    200: {"description": "The tile.", "content": {"image/jpeg": _BINARY}},
    **problems(
        JobNotFoundError,
        JobUnreadableError,
        FileMissingError,
        InvalidRequestError,
        ResultExpiredError,
        ResultDamagedError,
    ),
}

router = APIRouter(tags=["images"])
Index = Annotated[int, Path(ge=0, le=1_000_000)]


@router.get(
    "/v1/jobs/{job_id}/image",
    response_class=Response,
    responses={**_FILE_RESPONSES, **problems(*_FILE_PROBLEMS)},
)
@router.head(
    "/v1/jobs/{job_id}/image",
    response_class=Response,
    responses={**_FILE_RESPONSES, **problems(*_FILE_PROBLEMS)},
)
async def get_image(request: Request, job: LoadedJob, services: ServicesDep) -> Response:
    """The finished picture, for display (Content-Disposition: inline)."""
    return await _answer(request, services, job, inline=True)


@router.get(
    "/v1/files/{job_id}",
    response_class=Response,
    responses={**_FILE_RESPONSES, **problems(*_FILE_PROBLEMS, ForbiddenError)},
)
async def download_image(
    request: Request, job_id: str, expires: int, signature: str, services: ServicesDep
) -> Response:
    """The finished picture, as an attachment, by a signed link from `urls.download`."""
    services.links.check(job_id, expires, signature)
    job = await services.jobs.get(job_id)
    if job is None:
        raise JobNotFoundError(job_id)
    return await _answer(request, services, job, inline=False)


@router.get(
    "/v1/jobs/{job_id}/image.dzi",
    response_class=Response,
    responses={
        200: {"description": "Deep Zoom descriptor.", "content": {"application/xml": {}}},
        **problems(JobNotFoundError, JobUnreadableError, InvalidRequestError),
    },
)
async def get_descriptor(job: LoadedJob) -> Response:
    """Descriptor for deep-zoom viewers; the tiles are at image_files/{level}/{column}_{row}.jpg beside it."""
    return Response(_pyramid(job).describe(), media_type="application/xml", headers=_IMMUTABLE)


@router.get(
    "/v1/jobs/{job_id}/tiles/{level}/{column}_{row}", response_class=Response, responses=_TILE_RESPONSES
)
@router.get(
    "/v1/jobs/{job_id}/image_files/{level}/{column}_{row}.jpg",
    response_class=Response,
    responses=_TILE_RESPONSES,
    operation_id="get_tile_of_descriptor",
)
async def get_tile(
    job: LoadedJob, level: Index, column: Index, row: Index, services: ServicesDep
) -> Response:
    """One tile of the deep zoom: of the finished picture, or of the current canvas."""
    window = _pyramid(job).window(level, column, row)
    if window is None:
        raise FileMissingError(f"no tile {column}_{row} at level {level}")
    if job.result is not None:
        return await _send_stored_tile(services, job.result, f"{level}/{column}_{row}.jpg")
    return await _send_present_tile(services, job, window)


async def _answer(request: Request, services: ServicesDep, job: Job, *, inline: bool) -> Response:
    result = require_result(job)
    address = await services.images.sign(result.image_key, request.method)
    if address is not None:
        return RedirectResponse(address, 302, {"Cache-Control": "no-store"})
    return await send_file(request, services.images, result, name=f"chorale-{job.id}", inline=inline)


def require_result(job: Job) -> Result:
    """What the job has made.

    Raises:
        NotReadyError: it runs, or waits.
        ResultNeverError: it ended without a picture.
    """
    if job.result is not None:
        return job.result
    if job.status in TERMINAL:
        raise ResultNeverError(f"the job is {job.status} and has no picture")
    eta_s = job.progress.eta_s if job.progress else None
    retry_s = max(1, round(eta_s)) if eta_s else _NOT_READY_RETRY_S
    raise NotReadyError(f"the job is {job.status}", retry_after_s=retry_s)


def _pyramid(job: Job) -> Pyramid:
    return Pyramid(job.request.width_px, job.request.height_px)


async def _send_stored_tile(services: ServicesDep, result: Result, name: str) -> Response:
    for prefix in (result.pyramid_key, *result.inherited_pyramids):
        tile = await services.images.read(f"{prefix.rstrip('/')}/{PYRAMID_FOLDER}/{name}")
        if tile is None:
            continue
        if not (tile.startswith(_JPEG_START) and tile.endswith(_JPEG_END)):
            raise ResultDamagedError(f"the stored tile {name} is damaged; make the picture again")
        return Response(tile, media_type="image/jpeg", headers=_IMMUTABLE)
    raise ResultExpiredError("the deep zoom is no longer stored")


async def _send_present_tile(services: ServicesDep, job: Job, window: Window) -> Response:
    return Response(
        await services.previews.render(job.id, window), media_type="image/jpeg", headers=_CHANGING
    )

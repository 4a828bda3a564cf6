"""What a request leaves to the picture that it begins with: sizes, strength, and whether its parts fit each other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from api_schemas.catalog import ModelCard
from api_schemas.errors import FieldError
from api_schemas.events import Result
from api_schemas.generation import DEFAULT_STRENGTH, WEBP_MAX_SIDE_PX, GenerationRequest
from api_schemas.job import Job
from api_schemas.sizes import MAX_SIDE_PX, MIN_SIDE_PX
from api_schemas.source import Size, Source, SourceJob, place_source
from api_schemas.stages import fit_source
from api_schemas.wire import state_key
from service.errors import InvalidRequestError
from service.job_store import JobStore

_SIDES = ("width_px", "height_px")
_MOST_PYRAMIDS = 8  # in which a tile may have to be looked for


@dataclass(frozen=True, slots=True)
class FoundSource:
    """The picture that a job begins with.

    Args:
        size: (width, height), pixels.
        job: that has made it; None: it is sent with the request.
    """

    size: Size
    job: Job | None = None

    def describe(self, request: GenerationRequest, card: ModelCard) -> SourceJob | None:
        """What the worker needs of the job; its kept latent only where the new canvas can begin with that."""
        if self.job is None or self.job.result is None:
            return None
        result, own = self.job.result, self.job.request
        fits = own.model == card.name and self._lies_as_it_was(request)
        fits = fits and fit_source(card, request) == card.fit_canvas(own)
        return SourceJob(
            image_key=result.image_key,
            width_px=result.width_px,
            height_px=result.height_px,
            sha256=result.sha256,
            state_key=state_key(result) if fits else None,
            pyramid_keys=self._list_pyramids(result, request),
        )

    def _list_pyramids(self, result: Result, request: GenerationRequest) -> list[str]:
        keys = [result.pyramid_key, *result.inherited_pyramids]
        same = request.mask is not None and self.size == (request.width_px, request.height_px)
        return keys if same and self._lies_as_it_was(request) and len(keys) < _MOST_PYRAMIDS else []

    def _lies_as_it_was(self, request: GenerationRequest) -> bool:
        assert request.source is not None
        if request.upscale is not None:
            return True
        place = place_source(request.source, self.size, (request.width_px, request.height_px))
        return (place.left, place.top, place.width, place.height) == (0, 0, *self.size)


async def find_source(job_id: str, jobs: JobStore, reaches: Callable[[Job], bool]) -> FoundSource:
    """The picture of a finished job.

    Args:
        reaches: whether a job is there for who asks.

    Raises:
        InvalidRequestError: there is no such job, or it has no picture.
    """
    job = await jobs.get(job_id)
    job = job if job is not None and reaches(job) else None
    if job is not None and job.result is not None:
        return FoundSource((job.request.width_px, job.request.height_px), job)
    state = "no such job, or it has expired" if job is None else f"a job that is {job.status}"
    allowed = f"the id of a job that has succeeded; this is {state}"
    raise InvalidRequestError([FieldError(field="source.job", value=job_id, allowed=allowed)])


def settle_source(request: GenerationRequest, size: Size) -> GenerationRequest:
    """The request with the size and strength that a source of that (width, height) decides.

    Raises:
        InvalidRequestError: names each field that does not fit the source.
    """
    width_px, height_px = _choose_size(request, size)
    errors = list(_check_size(request, size, (width_px, height_px)))
    if errors:
        raise InvalidRequestError(errors)
    settled = request.model_copy(update={"width_px": width_px, "height_px": height_px})
    errors = list(_check_place(settled, size))
    if errors:
        raise InvalidRequestError(errors)
    return (
        settled
        if request.upscale
        else settled.model_copy(update={"strength": _choose_strength(settled, size)})
    )


def _choose_size(request: GenerationRequest, size: Size) -> Size:
    """As asked for; a side that is left out follows the source's proportions."""
    if request.upscale is not None:
        return size[0] * request.upscale, size[1] * request.upscale
    asked = request.model_fields_set.intersection(_SIDES)
    if asked == {"width_px"}:
        return request.width_px, round(size[1] * request.width_px / size[0])
    if asked == {"height_px"}:
        return round(size[0] * request.height_px / size[1]), request.height_px
    return (request.width_px, request.height_px) if asked else size


def _check_size(request: GenerationRequest, size: Size, chosen: Size) -> Iterator[FieldError]:
    own = f"{size[0]}x{size[1]} px"
    if request.upscale is not None:
        for side in _SIDES:
            if side in request.model_fields_set:
                allowed = f"nothing beside `upscale`: the picture is the source of {own}, {request.upscale} times as large"
                yield FieldError(field=side, value=str(getattr(request, side)), allowed=allowed)
        if not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in chosen):
            allowed = (
                f"what leaves {MIN_SIDE_PX} to {MAX_SIDE_PX} px a side;"
                f" a source of {own} becomes {chosen[0]}x{chosen[1]} px"
            )
            yield FieldError(field="upscale", value=str(request.upscale), allowed=allowed)
    elif not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in chosen):
        allowed = (
            f"{MIN_SIDE_PX} to {MAX_SIDE_PX} px a side; by the proportions of a source of {own} it is this"
        )
        yield FieldError(field="width_px and height_px", value=f"{chosen[0]}x{chosen[1]}", allowed=allowed)
    if request.output_format == "webp" and max(chosen) > WEBP_MAX_SIDE_PX:
        allowed = (
            f"png, jpeg or tiff: webp ends at {WEBP_MAX_SIDE_PX} px a side, the picture has {max(chosen)}"
        )
        yield FieldError(field="output_format", value="webp", allowed=allowed)


def _check_place(request: GenerationRequest, size: Size) -> Iterator[FieldError]:
    source, picture = request.source, (request.width_px, request.height_px)
    assert source is not None
    if request.upscale is not None:
        yield from _check_enlarged_whole(source)
        return
    own, whole = f"{size[0]}x{size[1]}", f"{picture[0]}x{picture[1]}"
    place = place_source(source, size, picture)
    if source.offset is None and source.fit == "exact" and size != picture:
        allowed = f"a source of {whole} px, as the picture has, or another fit; this one has {own} px"
        yield FieldError(field="source.fit", value="exact", allowed=allowed)
    if source.offset is not None and (place.left + size[0] > picture[0] or place.top + size[1] > picture[1]):
        allowed = f"where a source of {own} px lies within the picture of {whole} px"
        yield FieldError(field="source.offset", value=source.offset.model_dump_json(), allowed=allowed)
    if request.style is not None and not place.covers(picture):
        allowed = "a source that covers the picture: what it leaves free has no structure to keep"
        yield FieldError(field="style", value=f"a source of {own} px on {whole} px", allowed=allowed)
    elif request.strength not in (None, 1.0) and not place.covers(picture):
        allowed = "1: the source does not cover the picture, and what it leaves free is inpainted"
        yield FieldError(field="strength", value=f"{request.strength:g}", allowed=allowed)


def _check_enlarged_whole(source: Source) -> Iterator[FieldError]:
    allowed = "nothing beside `upscale`: the whole source is enlarged"
    if source.fit != "fill":
        yield FieldError(field="source.fit", value=source.fit, allowed=allowed)
    if source.offset is not None:
        yield FieldError(field="source.offset", value=source.offset.model_dump_json(), allowed=allowed)


def _choose_strength(request: GenerationRequest, size: Size) -> float:
    assert request.source is not None
    if request.strength is not None:
        return request.strength
    if request.style is not None:
        return request.style.share
    picture = request.width_px, request.height_px
    inpaints = request.mask is not None or not place_source(request.source, size, picture).covers(picture)
    return 1.0 if inpaints else DEFAULT_STRENGTH

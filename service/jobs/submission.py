"""What a client posts: a request as JSON, or as one part of a form beside the pictures that it needs."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, get_args

from anyio import to_thread
from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from api_schemas.errors import FieldError
from api_schemas.generation import GenerationRequest, PicturePart
from api_schemas.job import Job
from api_schemas.refused_values import list_refused
from api_schemas.regions import name_masks
from api_schemas.webhook import write_webhook
from service.errors import BadRequestError, InvalidRequestError
from service.images.formats import name_formats
from service.images.received import ReceivedPicture
from service.images.uploads import Decoded
from service.jobs.forms import read_form

REQUEST_PART: Final = "request"
PICTURE_PARTS: Final[tuple[PicturePart, ...]] = get_args(PicturePart)
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Submission:
    """A request and the files sent with it, not yet decoded.

    Args:
        parent: the job that it was derived from, whose pictures it has too.
        siblings: how many were asked for at once, this one included.
        key_id: of the API key that asks; empty where no keys are used.
        places: jobs that there must be a place for, this one and those that are made with it.
        reaches_all: whether it may begin with a job of another key.
        most_pixels: of the picture, where a larger one could not be answered.
        decoded: the files, where others that are alike have them too.
    """

    request: GenerationRequest
    files: dict[PicturePart, ReceivedPicture] = field(default_factory=dict[PicturePart, ReceivedPicture])
    parent: Job | None = None
    siblings: int = 1
    key_id: str = ""
    places: int = 1
    reaches_all: bool = False
    most_pixels: int | None = None
    decoded: Decoded | None = None

    @property
    def parent_id(self) -> str | None:
        """The job that it was derived from, or begins with."""
        if self.parent is not None:
            return self.parent.id
        return self.request.source.job if self.request.source else None

    def reaches(self, job: Job) -> bool:
        """Whether it may begin with the picture of this job."""
        return self.reaches_all or job.key_id == self.key_id

    def fingerprint(self) -> str:
        """The same for the same request with the same pictures, also for a later version that has more fields."""
        digests = "".join(f"{part}:{picture.sha256}" for part, picture in sorted(self.files.items()))
        parent = f"parent:{self.parent.id}" if self.parent else ""
        request = self.request.model_dump_json(exclude_defaults=True)
        siblings = f"siblings:{self.siblings}" if self.siblings > 1 else ""
        asked = self.request.webhook
        webhook = f"webhook:{json.dumps(write_webhook(asked))}" if asked else ""
        return hashlib.sha256((request + digests + parent + siblings + webhook).encode()).hexdigest()

    def list_inherited(self) -> list[PicturePart]:
        """The pictures of its parent that it needs too."""
        kept = self.parent.request.pictures if self.parent else {}
        return [part for part in kept if is_taken(self.request, part)]

    def check_pixels(self, request: GenerationRequest) -> None:
        """Check the size of the picture, once it is known.

        Raises:
            InvalidRequestError: it has more than `most_pixels`.
        """
        size = f"{request.width_px}x{request.height_px}"
        if self.most_pixels is not None and request.width_px * request.height_px > self.most_pixels:
            raise _refuse("most_pixels", size, f"at most {self.most_pixels} pixels; this picture has {size}")

    def close(self) -> None:
        """Free the disk; may be repeated."""
        for picture in self.files.values():
            picture.file.close()


async def read_submission(
    request: Request, max_json_bytes: int, max_picture_bytes: int, folder: Path
) -> Submission:
    """Read a body of either form.

    Args:
        folder: where pictures are meanwhile.

    Raises:
        BadRequestError, InvalidFormError: it cannot be decoded.
        InvalidRequestError: a value is refused, or a part is missing, is too much, or is too large.
        UnavailableError: pictures cannot be written to the folder.
    """
    # Named it must be: a page of another site may send a body without a type, unasked.
    kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_upload(request, max_json_bytes, max_picture_bytes, folder)
    if kind != "application/json" and not kind.endswith("+json"):
        raise _refuse("Content-Type", kind, "application/json or multipart/form-data")
    return Submission(_parse(await request.body()))


async def _read_upload(
    request: Request, max_json_bytes: int, max_picture_bytes: int, folder: Path
) -> Submission:
    form = await read_form(request, folder, max_json_bytes)
    try:
        return await _read_form(form, max_json_bytes, max_picture_bytes)
    except BaseException:
        with suppress(OSError):  # the disk is full, and all is lost anyway
            await form.close()
        raise


async def _read_form(form: FormData, max_json_bytes: int, max_picture_bytes: int) -> Submission:
    _refuse_unknown_parts([name for name, _ in form.multi_items()])
    if REQUEST_PART not in form:
        raise _refuse(REQUEST_PART, "null", "the request as JSON, as a part of this name")
    body = await _read_part(REQUEST_PART, form[REQUEST_PART], max_json_bytes)
    files: dict[PicturePart, ReceivedPicture] = {}
    for part in PICTURE_PARTS:
        if part in form:
            files[part] = await read_picture(part, form[part], max_picture_bytes)
    return Submission(_note_style(_parse(body), files), files)


def _note_style(
    request: GenerationRequest, files: Mapping[PicturePart, ReceivedPicture]
) -> GenerationRequest:
    """Beside words a style picture may be sent or not; where it is, the request says so from here on."""
    if request.style is None or "style_image" not in files:
        return request
    return request.model_copy(update={"style": request.style.model_copy(update={"style_image": True})})


async def read_picture(name: str, part: UploadFile | str, max_bytes: int) -> ReceivedPicture:
    """A part of a form as a file.

    Raises:
        InvalidRequestError: it is none, or too large.
    """
    if isinstance(part, str):
        raise _refuse(name, "a field", "a file, as in filename=picture.png")
    if (part.size or 0) > max_bytes:
        raise _refuse(name, f"more than {max_bytes} bytes", f"at most {max_bytes} bytes")
    return ReceivedPicture(part.file, part.size or 0, await to_thread.run_sync(_digest, part.file))


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _refuse_unknown_parts(names: list[str]) -> None:
    known = (REQUEST_PART, *PICTURE_PARTS)
    for name in names:
        if name not in known:
            raise _refuse(name, "a part", f"no such part; known are {', '.join(known)}")
        if names.count(name) > 1:
            raise _refuse(name, f"{names.count(name)} parts", "one part of this name")


async def _read_part(name: str, part: UploadFile | str, max_bytes: int) -> bytes:
    content = part.encode() if isinstance(part, str) else await part.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise _refuse(name, f"more than {max_bytes} bytes", f"at most {max_bytes} bytes")
    return content


def require_pictures(submission: Submission) -> None:
    """Check that each picture has its field in the request, and each such field its picture.

    Raises:
        InvalidRequestError: one is missing, or too much.
    """
    errors = list(_mismatches(submission))
    if errors:
        raise InvalidRequestError(errors)


def _mismatches(submission: Submission) -> Iterator[FieldError]:
    inherited = submission.list_inherited()
    for part in PICTURE_PARTS:
        wanted, sent = is_needed(submission.request, part), part in submission.files
        if wanted and not sent and part not in inherited:
            allowed = f"a {name_formats()} picture as the part {part} of multipart/form-data, for {_name_field(part)}"
            allowed += _name_other(submission.request, part)
            yield FieldError(field=part, value="null", allowed=allowed)
        if sent and not is_taken(submission.request, part):
            yield FieldError(field=part, value="a picture", allowed=_name_place(submission.request, part))


def _name_place(request: GenerationRequest, part: PicturePart) -> str:
    """Why a picture has no place."""
    field = _name_field(part)
    if (field == "source" and request.source) or (field == "mask" and request.mask):
        return f"no picture beside what {field} says: one of the two"
    return f"no picture without the field {field}"


def _name_other(request: GenerationRequest, part: PicturePart) -> str:
    """What is allowed in a picture's place."""
    if part == "style_image" and request.style is not None and not request.style.prompt:
        return "; or a style in words, style.prompt"
    if part == "control_image" and request.source is not None:
        return "; the source is in its place only with source.fit fill or exact, without source.offset and without a mask"
    return ""


def is_taken(request: GenerationRequest, part: PicturePart) -> bool:
    """Whether a request has the field that a picture comes for."""
    optional = {"control_image": request.control, "ip_adapter_image": request.ip_adapter}
    return is_needed(request, part) or optional.get(part) is not None


def is_needed(request: GenerationRequest, part: PicturePart) -> bool:
    """Whether a request cannot do without a picture: an IP-Adapter can, where it is given the style picture, and a ControlNet
    where it is given the source."""
    source, mask, style = request.source, request.mask, request.style
    shows_style = style is not None and style.has_picture
    needed: dict[PicturePart, bool] = {
        "control_image": request.control is not None and not request.goes_by_source,
        "ip_adapter_image": request.ip_adapter is not None and not shows_style,
        "source_image": source is not None and source.job is None,
        "style_image": shows_style,
        "mask_image": mask is not None and mask.is_picture,
    }
    return needed.get(part, part in name_masks(request.regions))


def _name_field(part: PicturePart) -> str:
    """The field that a picture comes for."""
    return part.removesuffix("_image") if part.endswith("_image") else "regions.*.shape.mask"


def _parse(body: bytes) -> GenerationRequest:
    try:
        value: object = json.loads(body)
    except json.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise BadRequestError(
            "the body is JSON that cannot be read: no UTF-8, or too deep or long"
        ) from error
    try:
        return GenerationRequest.model_validate(value)
    except ValidationError as error:
        refused = list_refused(error, GenerationRequest)
        raise InvalidRequestError(
            [each if each.field else each.model_copy(update={"field": "body"}) for each in refused]
        ) from error


def _refuse(field: str, value: str, allowed: str) -> InvalidRequestError:
    return InvalidRequestError([FieldError(field=field[:200], value=value[:200], allowed=allowed)])

"""Reads the form of `images.edit`: fields, the pictures and the mask."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Final, cast

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from api_schemas.errors import FieldError
from api_schemas.generation import PicturePart
from api_schemas.refused_values import REQUIRED, UNKNOWN_FIELD, list_refused
from service.errors import InvalidRequestError
from service.images.received import ReceivedPicture
from service.jobs.forms import read_form
from service.jobs.submission import read_picture
from service.openai_api.parameters import ChoraleOptions, EditParameters

_MOST_FIELDS: Final = 60  # twice as many as there are
_IMAGES: Final = ("image", "image[]")
_FILES: Final = (*_IMAGES, "mask")
_PARTS: Final[tuple[PicturePart, ...]] = ("source_image", "style_image")
_MARKUP: Final = (
    "nothing: a picture drawn over the image is not read; a mask, or the prompt, may say what is meant"
)


@dataclass(frozen=True, slots=True)
class Edit:
    """What is asked for, and the pictures sent with it."""

    parameters: EditParameters
    files: dict[PicturePart, ReceivedPicture]

    def close(self) -> None:
        """Free the disk; may be repeated."""
        for picture in self.files.values():
            picture.file.close()


async def read_edit(request: Request, max_field_bytes: int, max_picture_bytes: int, folder: Path) -> Edit:
    """
    Args:
        folder: where pictures are meanwhile.

    Raises:
        InvalidFormError: it is broken.
        InvalidRequestError: by the names of their parameters.
        UnavailableError: pictures cannot be written to the folder.
    """
    kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise _refuse("Content-Type", kind, "multipart/form-data")
    form = await read_form(request, folder, max_field_bytes, _MOST_FIELDS)
    try:
        files = await _read_files(form, max_picture_bytes)
        return Edit(_read_parameters(form), files)
    except BaseException:
        with suppress(OSError):
            await form.close()
        raise


async def _read_files(form: FormData, max_bytes: int) -> dict[PicturePart, ReceivedPicture]:
    images = [part for name in _IMAGES for part in form.getlist(name)]
    if not images:
        raise _refuse("image", "null", f"{REQUIRED}, the picture that is edited")
    if len(images) > len(_PARTS):
        allowed = "one picture, which is edited, or two, whose second gives the style"
        raise _refuse("image", f"{len(images)} pictures", allowed)
    files: dict[PicturePart, ReceivedPicture] = {
        part: await read_picture("image", image, max_bytes)
        for part, image in zip(_PARTS, images, strict=False)
    }
    if "markup" in form:
        raise _refuse("markup", "a picture", _MARKUP)
    masks = form.getlist("mask")
    if len(masks) > 1:
        raise _refuse("mask", f"{len(masks)} pictures", "one mask, for the first picture")
    for mask in masks:
        if len(images) > 1:
            raise _refuse("mask", "a picture", "no mask beside a picture for the style: all is restyled")
        files["mask_image"] = replace(await read_picture("mask", mask, max_bytes), marks_by_alpha=True)
    return files


def _read_parameters(form: FormData) -> EditParameters:
    fields = [(name, value) for name, value in form.multi_items() if name not in _FILES]
    try:
        return EditParameters.model_validate(_nest(fields))
    except ValidationError as error:
        raise InvalidRequestError(list(map(_explain, list_refused(error, EditParameters)))) from error


def _explain(error: FieldError) -> FieldError:
    """By the names of the form, in which an object's fields are `chorale[seed]`."""
    if not error.allowed.startswith(UNKNOWN_FIELD):
        return error
    options = [f"chorale[{name}]" for name in ChoraleOptions.model_fields]
    fields = [name for name, field in EditParameters.model_fields.items() if field.annotation is not NoneType]
    known = [*_FILES, *(name for name in fields if name != "chorale"), *options]
    return error.model_copy(update={"allowed": f"{UNKNOWN_FIELD}; known are {', '.join(known)}"})


def _nest(fields: Iterable[tuple[str, str | UploadFile]]) -> Mapping[str, object]:
    """`chorale[seed]` is the field `seed` of `chorale`, as the clients write it."""
    nested: dict[str, object] = {}
    for name, value in fields:
        outer, bracket, inner = name.partition("[")
        within = nested
        if bracket and inner.endswith("]"):
            name, within = inner[:-1], nested.setdefault(outer, {})
        if not isinstance(within, dict) or name in within:
            raise _refuse(name[:200], "several fields", "one field of this name")
        cast(dict[str, object], within)[name] = (
            value if isinstance(value, str) else f"the file {value.filename}"
        )
    return nested


def _refuse(field: str, value: str, allowed: str) -> InvalidRequestError:
    return InvalidRequestError([FieldError(field=field, value=value[:200], allowed=allowed)])

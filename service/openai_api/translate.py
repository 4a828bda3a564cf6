"""From OpenAI's parameters to requests of our own, and back from refused fields to their parameters."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import Final

from pydantic import ValidationError

from api_schemas.catalog import ModelCard
from api_schemas.errors import FieldError
from api_schemas.fields import MAX_SEED
from api_schemas.generation import DEFAULT_STRENGTH, GenerationRequest, PicturePart
from api_schemas.refused_values import list_refused
from service.errors import InvalidRequestError, QuotaExceededError
from service.images.received import ReceivedPicture
from service.jobs.submission import Submission
from service.openai_api.parameters import EditParameters, ImageParameters, Quality

MOST_PIXELS: Final = 4 << 20  # of a picture in JSON: 2048x2048 as PNG is up to 17 MB of base64
_STEPS: Final[dict[Quality, float]] = {"low": 0.5, "medium": 1.0, "high": 1.5, "xhigh": 2.0, "max": 3.0}
_FAITHFUL: Final = 0.35  # img2img strength of input_fidelity high
_URL: Final = "url: a picture of more than four megapixels is not sent in JSON"
# In place of words about fields that OpenAI's clients cannot send.
_ALLOWED: Final = {
    "source.fit": "auto, or the size of the picture that is edited: its mask lies on it as it is",
    "style.style_image": "one picture, which is edited: this model takes a style from words alone, not from a second one",
}
# Of our fields, where their names differ. What a picture's size refuses is for the size that was asked for.
_PARAMETERS: Final = {
    "width_px": "size",
    "height_px": "size",
    "width_px and height_px": "size",
    "source.fit": "size",
    "steps": "quality",
    "output_quality": "output_compression",
    "source_image": "image",
    "style_image": "image",
    "style": "image",
    "style.style_image": "image",
    "mask_image": "mask",
    "seed": "chorale.seed",
    "negative_prompt": "chorale.negative_prompt",
    "guidance_scale": "chorale.guidance_scale",
    "seamless": "chorale.seamless",
    # Of an API key's limits.
    "count": "n",
    "queued_jobs": "n",
    "megapixel_steps": "size",
}


def write_submissions(
    asked: ImageParameters, card: ModelCard, files: Mapping[PicturePart, ReceivedPicture], key_id: str
) -> list[Submission]:
    """One for each picture that is asked for.

    Args:
        card: of the model that is meant.
        files: of an edit.

    Raises:
        InvalidRequestError: by the names of their parameters.
    """
    with explained():
        _check_answer(asked)
        choices = _choose(asked, card) | _choose_source(asked, card, files)
        first = Submission(
            GenerationRequest.model_validate(choices),
            dict(files),
            siblings=asked.n,
            key_id=key_id,
            most_pixels=MOST_PIXELS if asked.response_format == "b64_json" else None,
        )
        return [_draw_other(first, index) for index in range(asked.n)]


@contextmanager
def explained() -> Generator[None]:
    """What is refused within is refused by the names of OpenAI's parameters."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError([_rename(each) for each in error.errors]) from error
    except QuotaExceededError as error:
        error.errors = [_rename(each) for each in error.errors]
        raise
    except ValidationError as error:
        raise InvalidRequestError(list(map(_rename, list_refused(error, GenerationRequest)))) from error


def choose_steps(card: ModelCard, quality: Quality) -> int:
    """Of the first stage: the model's own, as many times as the quality says, within what it takes."""
    return min(max(ceil(card.default_steps * _STEPS[quality]), card.min_steps), card.max_steps)


def _rename(error: FieldError) -> FieldError:
    if error.field == "most_pixels":
        return FieldError(field="response_format", value="b64_json", allowed=_URL)
    name = "steps" if error.field.startswith("advanced.stages") else error.field
    allowed = _ALLOWED.get(name, error.allowed)
    return error.model_copy(update={"field": _PARAMETERS.get(name, name), "allowed": allowed})


def _check_answer(asked: ImageParameters) -> None:
    """Whether the answer may hold the picture, where its size is known already."""
    width, height = asked.sides or (0, 0)
    if asked.response_format == "b64_json" and width * height > MOST_PIXELS:
        raise InvalidRequestError([FieldError(field="response_format", value="b64_json", allowed=_URL)])


def _choose(asked: ImageParameters, card: ModelCard) -> dict[str, object]:
    sides = dict(zip(("width_px", "height_px"), asked.sides or (), strict=False))
    return {
        "prompt": asked.read_prompt,
        "model": card.name,
        "steps": None if asked.quality == "auto" else choose_steps(card, asked.chosen_quality),
        "output_format": asked.output_format,
        "output_quality": asked.file_quality,
        **sides,
        **asked.chorale.model_dump(),
    }


def _choose_source(
    asked: ImageParameters, card: ModelCard, files: Mapping[PicturePart, ReceivedPicture]
) -> dict[str, object]:
    """The first picture is what is edited, the second its style. A mask lies on the picture as it was sent."""
    if not isinstance(asked, EditParameters):
        return {}
    masked, styled = "mask_image" in files, "style_image" in files
    choices: dict[str, object] = {"source": {"fit": "exact" if masked and asked.sides else "fill"}}
    if masked:
        choices["mask"] = {}
    if styled:
        choices["style"] = {"style_image": True}
    if not masked and not styled:
        choices["strength"] = _choose_strength(asked, card)
    return choices


def _choose_strength(asked: EditParameters, card: ModelCard) -> float:
    """At least one step is run: else the picture would come back as it was."""
    wanted = _FAITHFUL if asked.input_fidelity == "high" else DEFAULT_STRENGTH
    return max(wanted, 1 / choose_steps(card, asked.chosen_quality))


def _draw_other(first: Submission, index: int) -> Submission:
    """Seeds count on from one that was asked for; others are drawn later."""
    seed = first.request.seed
    if seed is None:
        return first
    changed = first.request.model_copy(update={"seed": (seed + index) % (MAX_SEED + 1)})
    return replace(first, request=changed)

"""What OpenAI's clients may ask for; what is left out and what is null are the same."""

import re
from typing import Annotated, Final, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from api_schemas.fields import MAX_PROMPT, MAX_SEED, Prompt, RequestPart, refuse_nul
from api_schemas.generation import Seamless
from api_schemas.sizes import MAX_SIDE_PX, MIN_SIDE_PX

Quality = Literal["low", "medium", "high", "xhigh", "max"]
AnswerForm = Literal["b64_json", "url"]
_LONGEST_PROMPT: Final = 32_000  # characters
_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_SIZES: Final = f"auto, or WIDTHxHEIGHT of {MIN_SIDE_PX} to {MAX_SIDE_PX} px, as in 4096x4096"
# Of the clients before: their two qualities.
_FORMER: Final[dict[str, Quality]] = {"standard": "medium", "hd": "high"}


def _check_size(size: str) -> str:
    match = _SIZE.fullmatch(size)
    sides = [int(side) for side in match.groups()] if match else []
    if size == "auto" or (sides and all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in sides)):
        return size
    raise ValueError(_SIZES)


def _refuse(value: object) -> object:
    raise ValueError(
        "nothing: pictures are PNG, WebP or JPEG of one frame, and what is asked for is the prompt alone"
    )


Refused = Annotated[None, BeforeValidator(_refuse)]
"""Parameters that OpenAI's clients know, of what cannot be done."""


class ChoraleOptions(RequestPart):
    """What OpenAI's parameters have no name for, in `extra_body={"chorale": {...}}`."""

    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Of the first picture; each further one has the next."
    )
    negative_prompt: Prompt = ""
    guidance_scale: float | None = Field(default=None, ge=1.0, le=30.0, allow_inf_nan=False)
    seamless: Seamless = "none"


class ImageParameters(RequestPart):
    """The body of `images.generate`."""

    prompt: Annotated[str, Field(min_length=1, max_length=_LONGEST_PROMPT), AfterValidator(refuse_nul)] = (
        Field(
            description=f"The first {MAX_PROMPT} characters are read; `Chorale-Prompt-Cut` tells if there were more."
        )
    )
    model: str | None = Field(
        default=None,
        max_length=200,
        description="Name of a model card. Any other means the default model; `Chorale-Model` tells which one it was.",
    )
    n: int = Field(default=1, ge=1, le=10, description="How many pictures, each with a seed of its own.")
    size: Annotated[str, AfterValidator(_check_size)] = Field(default="auto", description=_SIZES)
    quality: Literal[Quality, "auto", "standard", "hd"] = Field(
        default="auto",
        description="Steps: a half, one, one and a half, two and three times the model's own; auto is medium.",
    )
    background: Literal["opaque", "auto"] = "auto"
    output_format: Literal["png", "webp", "jpeg"] = "png"
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Quality of a WebP or JPEG."
    )
    moderation: Literal["low", "auto"] = Field(default="auto", description="Changes nothing.")
    response_format: AnswerForm = Field(
        default="b64_json", description="Above four megapixels only url: an absolute link that expires."
    )
    user: str | None = Field(default=None, max_length=1000, description="Changes nothing.")
    safety_identifier: str | None = Field(default=None, max_length=1000, description="Changes nothing.")
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    partial_images: int = Field(
        default=0,
        ge=0,
        le=3,
        description="How many pictures of the unfinished canvas to send, with `stream`.",
    )
    chorale: ChoraleOptions = ChoraleOptions()
    complexity: Refused = None
    frame_count: Refused = None
    frame_duration_ms: Refused = None
    style: Refused = None
    svg: Refused = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        given = cast(dict[str, object], values)
        return {name: value for name, value in given.items() if value is not None}

    @field_validator("background", mode="before")
    @classmethod
    def _refuse_transparent(cls, background: object) -> object:
        if background == "transparent":
            raise ValueError("opaque or auto: no model of this server paints a transparent background")
        return background

    @property
    def chosen_quality(self) -> Quality:
        """As it is answered."""
        if self.quality == "auto":
            return "medium"
        return _FORMER.get(self.quality) or cast(Quality, self.quality)

    @property
    def sides(self) -> tuple[int, int] | None:
        """(width, height), pixels; None for auto."""
        match = _SIZE.fullmatch(self.size)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def file_quality(self) -> int | None:
        """As the file is written; a PNG loses nothing, whatever is asked for."""
        if self.output_compression is None or self.output_format == "png":
            return None
        return max(1, self.output_compression)

    @property
    def read_prompt(self) -> str:
        """What of the prompt is read."""
        return self.prompt[:MAX_PROMPT]

    @property
    def caller(self) -> str | None:
        """The identifier that is answered."""
        return self.safety_identifier or self.user


class EditParameters(ImageParameters):
    """The fields of `images.edit` beside its pictures."""

    input_fidelity: Literal["high", "low"] = Field(
        default="low", description="Without a mask: how much of the picture stays."
    )

"""A request that begins with a picture: which one, where it lies on the canvas, and what of it is inpainted."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from api_schemas.fields import MAX_SEED, RequestPart
from api_schemas.regions import MAX_FEATHER_PX, Point, Polygon, RectangleShape

MAX_UPSCALE = 8
MAX_VARIATIONS = 16
_BEGINS = "the picture to begin with"
_ENLARGED = "`fidelity` says how far the source may change"
_RESTYLED = "all of the source is restyled, at its size; another job takes the result"
# Fields of a request that are refused without another one, or beside it, and why.
FIELD_LINKS = (
    ("strength", "without", "source", _BEGINS),
    ("upscale", "without", "source", _BEGINS),
    ("mask", "without", "source", _BEGINS),
    ("style", "without", "source", _BEGINS),
    ("fidelity", "without", "upscale", "`strength` says how far a `source` may change that is not enlarged"),
    ("strength", "beside", "upscale", _ENLARGED),
    ("mask", "beside", "upscale", _ENLARGED),
    ("style", "beside", "upscale", _RESTYLED),
    ("style", "beside", "mask", _RESTYLED),
)
LINKED_FIELDS = ("source", "upscale", "strength", "mask", "style", "fidelity")
_JOB_ID = r"^[0-9a-f]{28}$"


def _require_id(text: str) -> str:
    if not re.fullmatch(_JOB_ID, text):
        raise ValueError("the id of a job, 28 hexadecimal digits")
    return text


JobId = Annotated[
    str,
    Field(json_schema_extra={"pattern": _JOB_ID}, description="`id` of a job, 28 hexadecimal digits."),
    AfterValidator(_require_id),
]
Fit = Literal["fill", "fit", "crop", "exact"]


class Offset(RequestPart):
    """Where the source's top left corner lies on the picture, unscaled."""

    left_px: int = Field(ge=0, le=16_384)
    top_px: int = Field(ge=0, le=16_384)


class Source(RequestPart):
    """The picture that a job begins with: that of another job, or the part `source_image`."""

    job: JobId | None = Field(
        default=None,
        description="A job that has succeeded; if left out, the part `source_image`, of an animation its first frame.",
    )
    fit: Fit = Field(
        default="fill",
        description="How a source of another size comes to the picture's. fill: scaled until it covers the picture, and"
        " cropped; fit: scaled until all of it can be seen; crop: not scaled, its middle in the picture's middle; exact: refused."
        " What fit and crop leave free is inpainted.",
    )
    offset: Offset | None = Field(
        default=None,
        description="In place of `fit`: the source is not scaled, and what it leaves free is inpainted.",
    )
    feather_px: int = Field(
        default=0,
        ge=0,
        le=MAX_FEATHER_PX,
        description="How far what is inpainted around the source fades into it.",
    )


class SourceMask(RequestPart):
    """What of the source is inpainted: a shape, or without one the part `mask_image`, white where it is, scaled to the source."""

    rectangle: RectangleShape | None = None
    polygon: Polygon | None = Field(
        default=None,
        description="Corners [x, y] in pixels from the picture's top left corner; edges may not cross.",
    )
    feather_px: int = Field(
        default=32,
        ge=0,
        le=MAX_FEATHER_PX,
        description="Width of the soft border, inside of the shape: pixels outside of it stay as they are.",
    )

    @model_validator(mode="after")
    def _require_one(self) -> "SourceMask":
        if self.rectangle is not None and self.polygon is not None:
            raise ValueError("rectangle or polygon, or none of them with the part mask_image; given: both")
        return self

    def list_corners(self) -> list[Point]:
        """Of the rectangle or the polygon, in order; a picture has none."""
        return (self.polygon or []) if self.rectangle is None else self.rectangle.list_corners()

    @property
    def is_picture(self) -> bool:
        """Whether it comes as the part `mask_image`."""
        return self.rectangle is None and self.polygon is None


class Variation(RequestPart):
    """A step from the initial noise so far towards that of a seed."""

    seed: int = Field(ge=0, le=MAX_SEED)
    amount: float = Field(
        default=0.2,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="0 changes nothing, 1 is the noise of this seed; in between they are mixed at this share of 90 degrees.",
    )


class SourceJob(BaseModel):
    """The finished job that a request begins with, as it was when the request was taken in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_key: str
    width_px: int
    height_px: int
    sha256: str | None = Field(
        default=None, description="Digest of the picture; of older requests not known."
    )
    state_key: str | None = Field(
        default=None, description="Kept latent of its picture, where the new canvas can begin with it."
    )
    pyramid_keys: list[str] = Field(
        default=[],
        description="Its own pyramid and those that it inherits, where the new picture may have tiles in common with them.",
    )


Size = tuple[int, int]
"""(width, height), pixels."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a source lies on a picture, once it is scaled; pixels, and it may reach beyond the picture's edges."""

    left: int
    top: int
    width: int
    height: int

    def covers(self, picture: Size) -> bool:
        """Whether it leaves nothing free."""
        right, bottom = self.left + self.width, self.top + self.height
        return self.left <= 0 and self.top <= 0 and right >= picture[0] and bottom >= picture[1]


def place_source(source: Source, size: Size, picture: Size) -> Placement:
    """Where a source of that size lies on a picture, by its `offset` or `fit`."""
    if source.offset is not None:
        return Placement(source.offset.left_px, source.offset.top_px, *size)
    ratios = [whole / own for whole, own in zip(picture, size, strict=True)]
    scale = {"fill": max(ratios), "fit": min(ratios)}.get(source.fit, 1.0)
    width, height = (max(round(side * scale), 1) for side in size)
    return Placement((picture[0] - width) // 2, (picture[1] - height) // 2, width, height)

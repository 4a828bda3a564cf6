"""What all parts of a request share: how they are checked, and the texts in them."""

from collections.abc import Sequence
from typing import Annotated, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

MAX_SEED = 2**63 - 1
MAX_PROMPT = 2000  # characters
MAX_DEADLINE_S = 30 * 86_400
_BOOLS: tuple[object, ...] = bool, bool | None


def refuse_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("the character U+0000 is not allowed")
    return text


def pair_of(shown: str) -> BeforeValidator:
    """A list of two, in these words: pydantic has tuples in its own, and JSON has none."""

    def require_two(value: object) -> object:
        if not isinstance(value, list | tuple) or len(cast(Sequence[object], value)) != 2:
            raise ValueError(shown)
        return cast(object, value)

    return BeforeValidator(require_two)


Prompt = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(refuse_nul)]


Priority = Annotated[
    Literal["low", "normal", "high"],
    Field(
        description="Of the jobs of one API key, those of higher priority start first, unless others have waited a day longer for"
        " each level. API keys take turns; there it only decides who is first of those that had no turn lately."
    ),
]
StartWithin = Annotated[
    float | None,
    Field(
        gt=0,
        le=MAX_DEADLINE_S,
        allow_inf_nan=False,
        description="Seconds after its creation by which the job must have started; else its status becomes `expired`.",
    ),
]
FinishWithin = Annotated[
    float | None,
    Field(
        gt=0,
        le=MAX_DEADLINE_S,
        allow_inf_nan=False,
        description="Seconds after its creation by which the job must have ended; else it stops, and its status becomes `expired`.",
    ),
]


class RequestPart(BaseModel):
    """What all parts of a request have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic takes true for 1."""
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field is not None and field.annotation not in _BOOLS:
            raise ValueError(f"true and false are no values of {info.field_name}")
        return value

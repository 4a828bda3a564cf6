"""What all parts of a request share: how they are checked, and the texts in them."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

REFUSED_FIELD: Final = "refused"
MAX_SEED = 2**63 - 1
MAX_PROMPT = 2000  # characters
MAX_DEADLINE_S = 30 * 86_400
_BOOLS: tuple[object, ...] = bool, bool | None


def refuse_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("the character U+0000 is not allowed")
    return text


def refuse_fields(*refused: tuple[str, object, str]) -> ValidationError:
    """To be raised by the validator of a whole model, whose other errors name no field.

    Args:
        refused: each by name, value and what is allowed.
    """
    errors = [
        InitErrorDetails(
            type=PydanticCustomError(REFUSED_FIELD, "{allowed}", {"allowed": allowed}),
            loc=tuple(name.split(".")),
            input=value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value,
        )
        for name, value, allowed in refused
    ]
    return ValidationError.from_exception_data("refused", errors)


def _require_no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("no_bool", "true and false are not allowed")
    return value


NoBool = BeforeValidator(_require_no_bool)
"""For items of lists: fields have it from `RequestPart`."""


def pair_of(shown: str) -> BeforeValidator:
    """A list of two, in these words: pydantic has tuples in its own, and JSON has none."""

    def require_two(value: object) -> object:
        if not isinstance(value, list | tuple) or len(cast(Sequence[object], value)) != 2:
            raise ValueError(shown)
        return tuple(cast(Sequence[object], value))  # no list, where a file's types are taken strictly

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
        return value if field is None or field.annotation in _BOOLS else _require_no_bool(value)

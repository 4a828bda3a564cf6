"""What a request says of networks that are added to its model."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from api_schemas.fields import RequestPart, refuse_fields, refuse_nul

AddOnName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(refuse_nul)]


class LoraChoice(RequestPart):
    """A LoRA from the model's card and its scale; a negative weight inverts its effect."""

    name: AddOnName
    weight: float = Field(default=1.0, ge=-4.0, le=4.0, allow_inf_nan=False)


class ControlSettings(RequestPart):
    """A ControlNet, conditioned on the picture in the part `control_image`, or without that on the source, enlarged with it."""

    name: AddOnName
    scale: float = Field(default=1.0, ge=0.0, le=2.0, allow_inf_nan=False)
    start: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Share of the steps after which it starts to apply.",
    )
    end: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Share of the steps after which it stops.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> "ControlSettings":
        if self.start >= self.end:
            raise refuse_fields(("start", self.start, f"less than `end`, which is {self.end:g}"))
        return self


class IpAdapterSettings(RequestPart):
    """An IP-Adapter, conditioned on the picture in the part `ip_adapter_image`."""

    name: AddOnName
    scale: float = Field(
        default=0.6,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="At 1.0 the prompt has almost no effect.",
    )

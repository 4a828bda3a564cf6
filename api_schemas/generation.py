"""What a client asks for."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

MIN_SIDE_PX = 64
MAX_SIDE_PX = 16_384
MAX_TILE_SIZE_PX = 4096
MAX_STAGES = 8
MAX_SEED = 2**63 - 1
MAX_DRAWN_SEED = 2**53 - 1  # what a double holds, so that every JSON parser keeps it
MAX_LORAS = 8
WEBP_MAX_SIDE_PX = 16_383
MIN_DPI, MAX_DPI = 1, 2400

Positions = Literal["local", "global"]
Layout = Literal["auto", "cascade", "flat"]
Seamless = Literal["none", "x", "y", "both"]
OutputFormat = Literal["png", "jpeg", "webp", "tiff"]
BitDepth = Literal[8, 16]
DEEP_FORMATS: tuple[OutputFormat, ...] = ("png", "tiff")
# Names of multipart parts; each needs the request's field of the same name without `_image`.
PicturePart = Literal["control_image", "ip_adapter_image"]


def _refuse_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("the character U+0000 is not allowed")
    return text


Prompt = Annotated[str, Field(max_length=2000), AfterValidator(_refuse_nul)]
AddOnName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_refuse_nul)]
Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]


class StageSettings(BaseModel):
    """One stage of a cascade, from the smallest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(default=None, ge=1, le=200, description="Steps that are sung.")
    strength: float | None = Field(
        default=None,
        ge=0.05,
        le=1.0,
        allow_inf_nan=False,
        description="Share of the schedule that they cover, from its end: how much of the smaller picture is sung anew.",
    )


class AdvancedSettings(BaseModel):
    """How the choir sings; every field left out is chosen from the model's card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_modules: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Tiles denoised at the same time, as one batch a device. Left out: as many as fit, shared"
        " out evenly. Given: the same bytes on any number of devices.",
    )
    tile_size_px: int | None = Field(
        default=None, ge=128, le=MAX_TILE_SIZE_PX, description="Side of a denoising tile."
    )
    overlap_px: int | None = Field(
        default=None, ge=0, le=2048, description="Pixels that neighbouring tiles share at least."
    )
    tile_grid: Literal["moving", "fixed"] = Field(
        default="moving", description="Whether the grid is shifted at every step."
    )
    positions: Positions = Field(
        default="local",
        description="Where a transformer believes a tile's pixels to lie: in the tile, or on the canvas.",
    )
    stages: list[StageSettings] = Field(
        default=[],
        max_length=MAX_STAGES,
        description="Of a cascade, from the smallest; what is left out, the model's card decides.",
    )
    decode_mode: Literal["auto", "exact", "bounded"] = Field(
        default="auto", description="Exact whole-canvas statistics, or statistics of a sample in less memory."
    )


class LoraChoice(BaseModel):
    """A LoRA of the model's card and how strongly it speaks; negative weights turn it round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AddOnName
    weight: float = Field(default=1.0, ge=-4.0, le=4.0, allow_inf_nan=False)


class ControlSettings(BaseModel):
    """A ControlNet that follows the picture sent as the part `control_image`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AddOnName
    scale: float = Field(default=1.0, ge=0.0, le=2.0, allow_inf_nan=False)
    start: float = Field(
        default=0.0, ge=0.0, le=1.0, allow_inf_nan=False, description="Share of the steps before it begins."
    )
    end: float = Field(
        default=1.0, ge=0.0, le=1.0, allow_inf_nan=False, description="Share of the steps when it ends."
    )

    @model_validator(mode="after")
    def _check_order(self) -> "ControlSettings":
        if self.start >= self.end:
            raise ValueError(f"control.start {self.start} must be less than control.end {self.end}")
        return self


class IpAdapterSettings(BaseModel):
    """An IP-Adapter that takes its style from the picture sent as the part `ip_adapter_image`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AddOnName
    scale: float = Field(
        default=0.6, ge=0.0, le=1.0, allow_inf_nan=False, description="1.0 all but drowns the prompt."
    )


class GenerationRequest(BaseModel):
    """One picture. Where it is seamless, its side must also be a multiple of the model's `alignment_px`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    model: str | None = Field(
        default=None, max_length=200, description="Name of a model card; the default model if left out."
    )
    width_px: Side = 1024
    height_px: Side = 1024
    steps: int | None = Field(default=None, ge=1, le=200)
    guidance_scale: float | None = Field(
        default=None, ge=1.0, le=30.0, allow_inf_nan=False, description="1.0 switches guidance off."
    )
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Drawn by the service if left out, below 2^53."
    )
    seamless: Seamless = Field(
        default="none", description="Axes along which the picture continues into itself."
    )
    layout: Layout = Field(
        default="auto",
        description="Whether the picture is first sung at the model's native size and then enlarged and sung"
        " again (cascade), or sung at its full size at once (flat: textures, panoramas). By the model's card: auto.",
    )
    output_format: OutputFormat = "png"
    bit_depth: BitDepth = Field(default=8, description="Bits a channel of the file; 16 for png and tiff.")
    dpi: int = Field(
        default=300,
        ge=MIN_DPI,
        le=MAX_DPI,
        description="Resolution that the file states, pixels an inch; it changes no pixel.",
    )
    embed_metadata: bool = Field(
        default=True, description="Write prompt, seed, model and settings into the file."
    )
    loras: list[LoraChoice] = Field(
        default=[], max_length=MAX_LORAS, description="Names from `loras` of the model's card, each once."
    )
    control: ControlSettings | None = Field(
        default=None, description="Needs the picture part `control_image`, so the request is multipart."
    )
    ip_adapter: IpAdapterSettings | None = Field(
        default=None, description="Needs the picture part `ip_adapter_image`, so the request is multipart."
    )
    advanced: AdvancedSettings = AdvancedSettings()

    @field_validator("loras")
    @classmethod
    def _refuse_twins(cls, loras: list[LoraChoice]) -> list[LoraChoice]:
        names = [lora.name for lora in loras]
        twins = {name for name in names if names.count(name) > 1}
        if twins:
            raise ValueError(f"each LoRA once; named more often: {', '.join(sorted(twins))}")
        return loras

    @field_validator("output_format")
    @classmethod
    def _check_format_fits(cls, output_format: OutputFormat, info: ValidationInfo) -> OutputFormat:
        longest_px = max(info.data.get("width_px", 0), info.data.get("height_px", 0))
        if output_format == "webp" and longest_px > WEBP_MAX_SIDE_PX:
            raise ValueError(
                f"png, jpeg or tiff: webp ends at {WEBP_MAX_SIDE_PX} px a side, the picture has {longest_px}"
            )
        return output_format

    @field_validator("bit_depth")
    @classmethod
    def _check_format_is_deep(cls, bit_depth: BitDepth, info: ValidationInfo) -> BitDepth:
        output_format = info.data.get("output_format", "png")
        if bit_depth == 16 and output_format not in DEEP_FORMATS:
            raise ValueError(f"16 is for output_format {' or '.join(DEEP_FORMATS)}, not {output_format}")
        return bit_depth


class SentPicture(BaseModel):
    """A picture that came with a request. It is kept as PNG in sRGB, without what else its file held."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(description="Of the file as it was sent.")
    width_px: int
    height_px: int


class ResolvedRequest(GenerationRequest):
    """A request with every choice made: what the worker sings and what the job reports."""

    model: str  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    steps: int  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    guidance_scale: float  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    seed: int  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    pictures: dict[PicturePart, SentPicture] = {}

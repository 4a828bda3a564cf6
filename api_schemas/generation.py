"""The request of a client."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from api_schemas.add_ons import ControlSettings, IpAdapterSettings, LoraChoice
from api_schemas.advanced import AdvancedSettings
from api_schemas.fields import (
    MAX_PROMPT,
    MAX_SEED,
    FinishWithin,
    Priority,
    Prompt,
    RequestPart,
    StartWithin,
    refuse_fields,
)
from api_schemas.regions import MAX_REGIONS, MaskPart, Region
from api_schemas.sizes import MAX_SIDE_PX, MIN_SIDE_PX
from api_schemas.source import (
    FIELD_LINKS,
    LINKED_FIELDS,
    MAX_UPSCALE,
    MAX_VARIATIONS,
    Source,
    SourceJob,
    SourceMask,
    Variation,
)
from api_schemas.style import Style
from api_schemas.webhook import AskedWebhook

MAX_DRAWN_SEED = 2**53 - 1  # what a double holds, so that every JSON parser keeps it
MAX_LORAS = 8
WEBP_MAX_SIDE_PX = 16_383
DEFAULT_STRENGTH = 0.6
DEFAULT_FIDELITY = 0.5
MIN_DPI, MAX_DPI = 1, 2400

Layout = Literal["auto", "cascade", "flat"]
Seamless = Literal["none", "x", "y", "both"]
OutputFormat = Literal["png", "jpeg", "webp", "tiff"]
BitDepth = Literal[8, 16]
DEEP_FORMATS: tuple[OutputFormat, ...] = ("png", "tiff")
LOSSY_FORMATS: tuple[OutputFormat, ...] = ("jpeg", "webp")
# Names of multipart parts; each needs the request's field of the same name without `_image`, or a region that names it.
PicturePart = Literal["control_image", "ip_adapter_image", "source_image", "style_image", MaskPart]

Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]


class GenerationRequest(RequestPart):
    """A request for one picture. Along a seamless axis its side must be a multiple of the model's `alignment_px`."""

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    model: str | None = Field(
        default=None, max_length=200, description="Name of a model card; if left out, the default model."
    )
    width_px: Side = 1024
    height_px: Side = 1024
    steps: int | None = Field(default=None, ge=1, le=200)
    guidance_scale: float | None = Field(
        default=None,
        ge=1.0,
        le=30.0,
        allow_inf_nan=False,
        description="As in diffusers; 1.0 turns guidance off.",
    )
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="If left out, the service draws one below 2^53."
    )
    seamless: Seamless = Field(
        default="none",
        description="Axes along which opposite edges match, so that copies tile without a seam.",
    )
    layout: Layout = Field(
        default="auto",
        description="cascade: generate at the model's native size, then repeatedly enlarge and denoise again."
        " flat: denoise at full size at once, for textures and panoramas. auto: by the prompt, if the model's card"
        " has `scene_words`, else the default of the card.",
    )
    output_format: OutputFormat = "png"
    bit_depth: BitDepth = Field(default=8, description="Bits per channel of the file; 16 needs png or tiff.")
    output_quality: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Quality of a JPEG or a lossy WebP; 92 and 90 if left out.",
    )
    dpi: int = Field(
        default=300,
        ge=MIN_DPI,
        le=MAX_DPI,
        description="Resolution in the metadata of the file, pixels per inch; it does not change the pixels.",
    )
    embed_metadata: bool = Field(
        default=True,
        description="Write prompt, seed, model and settings into the file. That a model made it, files always say.",
    )
    loras: list[LoraChoice] = Field(
        default=[],
        max_length=MAX_LORAS,
        description="LoRAs to apply, by their names in `loras` of the model's card; each at most once.",
    )
    control: ControlSettings | None = Field(
        default=None,
        description="Conditioned on the picture in the part `control_image`, which may be left out where all of a `source` is"
        " changed or enlarged: that is the picture then, at the size of each stage. With `upscale` and without `control` it is"
        " `tile_controlnet` of the model's card; a scale of 0 turns it off.",
    )
    ip_adapter: IpAdapterSettings | None = Field(
        default=None,
        description="Needs a multipart request with the part `ip_adapter_image`; beside a style picture it may be left out, and"
        " the IP-Adapter is given that.",
    )
    regions: list[Region] = Field(
        default=[],
        max_length=MAX_REGIONS,
        description="Areas with prompts of their own; the request's own prompt is the background where none is.",
    )
    source: Source | None = Field(
        default=None,
        description="Begin with a picture. Without `width_px` and `height_px` the result has its size. Its alpha is kept in"
        " png, webp and tiff, scaled with it, and what is inpainted does not change it; for jpeg it is laid on white.",
    )
    strength: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Img2img strength: share of the noise schedule that is run on the source, counted from its end; 0 leaves it"
        f" as it is, 1 makes a new picture. {DEFAULT_STRENGTH:g} if left out, by its `strength` with a `style`, and 1 where a part is"
        " inpainted.",
    )
    upscale: int | None = Field(
        default=None,
        ge=2,
        le=MAX_UPSCALE,
        description="Enlarge the source so many times, and add the detail that it lacks.",
    )
    fidelity: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="With `upscale`: 1 stays nearest to the source, 0 invents the most."
        f" {DEFAULT_FIDELITY:g} if left out.",
    )
    mask: SourceMask | None = Field(
        default=None, description="What of the source is inpainted; all else stays as it is."
    )
    style: Style | None = Field(
        default=None,
        description="Style transfer: the source keeps its structure, and takes this style in words, or that of the picture in the"
        " part `style_image`.",
    )
    variations: list[Variation] = Field(
        default=[],
        max_length=MAX_VARIATIONS,
        description="Steps from the seed's initial noise to a neighbouring one, in turn.",
    )
    priority: Priority = "normal"
    start_within_s: StartWithin = None
    finish_within_s: FinishWithin = None
    advanced: AdvancedSettings = AdvancedSettings()
    webhook: AskedWebhook = None

    @property
    def chosen_fidelity(self) -> float:
        """As asked for, or the default."""
        return DEFAULT_FIDELITY if self.fidelity is None else self.fidelity

    @model_validator(mode="after")
    def _check_source(self) -> "GenerationRequest":
        given = {name: value for name in LINKED_FIELDS if (value := getattr(self, name)) is not None}
        errors = [
            (name, value, f"nothing {word} `{other}`: {why}")
            for name, word, other, why in FIELD_LINKS
            if (value := given.get(name)) is not None and (other in given) == (word == "beside")
        ]
        described = [self.styled_prompt, *(self.describe_region(each) for each in self.regions)]
        if self.style is not None and (longest := max(map(len, described))) > MAX_PROMPT:
            allowed = (
                f"at most {MAX_PROMPT} characters together with the prompt before it; they have {longest}"
            )
            errors.append(("style.prompt", self.style.prompt, allowed))
        if errors:
            raise refuse_fields(*errors)
        return self

    @property
    def goes_by_source(self) -> bool:
        """Whether the source decides the large forms: not where a part is inpainted, or may be."""
        if self.source is None:
            return False
        leaves_free = self.source.offset is not None or self.source.fit in ("fit", "crop")
        inpaints = self.mask is not None or leaves_free
        return self.upscale is not None or self.style is not None or not inpaints

    @property
    def active_style(self) -> Style | None:
        """The style, if it counts."""
        return self.style if self.style is not None and self.style.strength else None

    @property
    def styled_prompt(self) -> str:
        """The prompt, with the style's behind it."""
        return self.prompt if self.active_style is None else self.active_style.describe(self.prompt)

    def describe_region(self, region: Region) -> str:
        """A region's prompt, with the style's behind it."""
        return region.prompt if self.active_style is None else self.active_style.describe(region.prompt)

    @property
    def style_px(self) -> tuple[int, int] | None:
        """(width, height) of the style picture, once it is known."""
        return None

    @field_validator("loras")
    @classmethod
    def _refuse_duplicates(cls, loras: list[LoraChoice]) -> list[LoraChoice]:
        names = [lora.name for lora in loras]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"each LoRA once; named more often: {', '.join(sorted(repeated))}")
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

    @field_validator("output_quality")
    @classmethod
    def _check_format_is_lossy(cls, output_quality: int | None, info: ValidationInfo) -> int | None:
        output_format = info.data.get("output_format", "jpeg")
        if output_quality is not None and output_format not in LOSSY_FORMATS:
            raise ValueError(f"for `output_format` {' or '.join(LOSSY_FORMATS)}, not {output_format}")
        return output_quality

    @field_validator("bit_depth")
    @classmethod
    def _check_format_is_deep(cls, bit_depth: BitDepth, info: ValidationInfo) -> BitDepth:
        output_format = info.data.get("output_format", "png")
        if bit_depth == 16 and output_format not in DEEP_FORMATS:
            raise ValueError(f"16 is for `output_format` {' or '.join(DEEP_FORMATS)}, not {output_format}")
        return bit_depth


class SentPicture(BaseModel):
    """A picture that was sent with a request. It is stored as PNG in sRGB, without metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(description="Digest of the file as it was sent.")
    width_px: int
    height_px: int
    size_bytes: int = Field(default=0, description="Of the PNG; 0 where none was counted.")


class ResolvedRequest(GenerationRequest):
    """A request with all defaults filled in, as the worker runs it and the job reports it."""

    model: str  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    steps: int  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    guidance_scale: float  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    seed: int  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    layout_reason: str = Field(
        default="", description="Why `auto` selected this layout; empty where the request named it."
    )
    control_reason: str = Field(
        default="",
        description="Why `control` is this ControlNet; empty where the request named it, or has none.",
    )
    pictures: dict[PicturePart, SentPicture] = Field(default={})
    source_job: SourceJob | None = Field(default=None, description="What `source.job` has made.")
    parent: str | None = Field(
        default=None, description="Job that this one was derived from, or begins with."
    )

    @property
    def source_px(self) -> tuple[int, int] | None:
        """(width, height) of the picture that it begins with."""
        given = self.source_job or self.pictures.get("source_image")
        return given and (given.width_px, given.height_px)

    @property
    def style_px(self) -> tuple[int, int] | None:
        given = self.pictures.get("style_image")
        return given and (given.width_px, given.height_px)

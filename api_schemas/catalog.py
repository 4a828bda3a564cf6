"""The model card that a worker publishes, and the estimated cost of a request."""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.add_ons import ControlSettings
from api_schemas.advanced import (
    ALWAYS_GUIDED,
    MAX_TILE_SIZE_PX,
    Attention,
    GuidanceInterval,
    Positions,
)
from api_schemas.generation import DEFAULT_FIDELITY, GenerationRequest
from api_schemas.layout import (
    Cascade,
    Stage,
)
from api_schemas.scenes import SceneWords
from api_schemas.sizes import MIN_SIDE_PX

MAX_SCHEDULE_STEPS = 1000  # the timesteps that models are trained on
AddOnKind = Literal["lora", "controlnet", "ip_adapter"]
Dtype = Literal["float32", "bfloat16", "float16"]


class Cost(BaseModel):
    """Cost of a job, estimated before it starts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiles: int = Field(
        description="Tile predictions over all steps, the conductor's and neighbourhoods' among them; the mean where"
        " the number depends on the seed."
    )
    canvas_tiles: int = Field(
        default=0,
        description="The same if all of the picture were made, under one prompt: where only a part is inpainted, tiles is less.",
    )
    unguided_tiles: int = Field(
        default=0,
        description="Those of `tiles` that lie outside of `advanced.guidance_interval`: each takes half the time.",
    )
    steps: int = Field(default=0, description="Steps of all stages; 0 in records older than cascades.")
    megapixel_steps: float = Field(description="Width x height x steps of each stage, summed, in millions.")
    vram_gib: float = Field(description="Estimated peak device memory.")

    @property
    def work(self) -> float:
        """In guided tiles."""
        return self.tiles - self.unguided_tiles / 2


class DecodeNeed(BaseModel):
    """Device memory that decoding a square picture needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int
    gib: float


class ModelCard(BaseModel):
    """A model that workers serve. Sizes are in pixels of the finished picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    description: str = ""
    license: str = ""
    native_size_px: int = Field(ge=1)
    alignment_px: int = Field(
        ge=1,
        description="Canvas sides are multiples of this. A picture's side must be one too along a seamless axis;"
        " elsewhere the canvas is rounded up and the picture is its top left part.",
    )
    min_side_px: int = MIN_SIDE_PX
    max_side_px: int = 16_384
    latent_channels: int = Field(ge=1)
    vae_scale: int = Field(ge=1, description="Pixels per latent pixel along each axis.")
    tile_sizes_px: list[int] = []
    max_tile_size_px: int = Field(default=MAX_TILE_SIZE_PX, description="Largest allowed tile side.")
    default_steps: int = Field(ge=1)
    min_steps: int = Field(default=1, description="Fewer its scheduler cannot take, from pure noise on.")
    max_steps: int = 200
    max_schedule_steps: int = Field(
        default=MAX_SCHEDULE_STEPS,
        description="Largest full schedule that the scheduler supports; a stage needs its steps divided by its strength.",
    )
    default_guidance_scale: float
    default_num_modules: int = 1
    layout: Literal["cascade", "flat"] = Field(
        default="flat", description="Layout that `auto` selects, where no word of the prompt decides."
    )
    scene_words: SceneWords | None = Field(
        default=None,
        description="By these words of the prompt, `auto` selects cascade for scenes and flat for textures.",
    )
    cascade: Cascade = Cascade()
    sync_strength: float = Field(
        default=0.0, ge=0, le=1, description="Default of `advanced.sync_strength` for textures."
    )
    positions: list[Positions] = Field(
        default=["local"], description="Allowed values of `advanced.positions`."
    )
    attention: list[Attention] = Field(
        default=["off"], description="Allowed values of `advanced.attention`, beside `auto`."
    )
    auto_attention: Attention = Field(default="off", description="Attention that `auto` selects.")
    style_image: bool = Field(
        default=False,
        description="Whether the model takes a style from a picture; from words every model does.",
    )
    attention_strength: float = Field(
        default=0.25, ge=0.0, le=1.0, description="Default of `advanced.attention_strength`."
    )
    negative_prompt: bool = Field(default=True, description="Whether the model uses `negative_prompt`.")
    guidance: bool = Field(
        default=True, description="Whether the model supports a `guidance_scale` other than 1."
    )
    guidance_interval: GuidanceInterval | None = Field(
        default=None, description="Default of `advanced.guidance_interval`; null: guidance always applies."
    )
    dtype: Dtype | None = Field(
        default=None, description="Type of weights and predictions on the worker that published the card."
    )
    weights_gib: float = Field(default=0.0, description="Weights held on the device at the same time.")
    tile_gib: float = Field(default=0.0, description="Memory that one module needs while it denoises.")
    decode_needs: list[DecodeNeed] = Field(
        default=[],
        description="Memory that decoding needs, from the smallest size to the largest. A larger picture may need"
        " less, since more of its decoder runs tile by tile.",
    )
    tile_seconds: float | None = Field(default=None, description="Seconds per tile prediction, as measured.")
    is_default: bool = False
    supports: list[AddOnKind] = Field(
        default=[], description="Kinds of add-ons that the family supports; their names are listed below."
    )
    loras: list[str] = Field(default=[], description="Allowed values of `loras[].name`.")
    controlnets: list[str] = Field(default=[], description="Allowed values of `control.name`.")
    ip_adapters: list[str] = Field(default=[], description="Allowed values of `ip_adapter.name`.")
    tile_controlnet: str | None = Field(
        default=None,
        description="The ControlNet that `upscale` takes where a request names none: the first by name of those that are listed for"
        " tiles, which keep to the source.",
    )

    def nearest_sides(self, side_px: int) -> tuple[int, int]:
        """The allowed sides just below and above `side_px`."""
        lowest = ceil(self.min_side_px / self.alignment_px) * self.alignment_px
        highest = self.max_side_px // self.alignment_px * self.alignment_px
        below = min(max(side_px // self.alignment_px * self.alignment_px, lowest), highest)
        return below, min(below + self.alignment_px, highest)

    def fit_canvas(self, request: GenerationRequest) -> tuple[int, int]:
        """(width, height) of the canvas; the picture is its top left part.

        Noise and tiles are positioned from that corner, so a smaller picture is a crop of the larger one.
        """
        width, height = (
            ceil(side_px / self.alignment_px) * self.alignment_px
            for side_px in (request.width_px, request.height_px)
        )
        return width, height

    def choose_layout(self, request: GenerationRequest) -> tuple[Literal["cascade", "flat"], str]:
        """The layout of this request, and why `auto` selects it; empty where the request names it."""
        if request.goes_by_source:
            return "flat", "the picture begins with a source"
        if request.layout != "auto":
            return request.layout, ""
        if self.scene_words is None:
            return self.layout, f"the default of model {self.name}"
        if request.seamless in ("y", "both"):
            return "flat", "a canvas that is seamless from top to bottom has no horizon"
        is_scene, reason = self.scene_words.judge_all(
            [request.prompt, *(each.prompt for each in request.regions)]
        )
        if is_scene is None:
            return self.layout, f"{reason}: the default of model {self.name}"
        return "cascade" if is_scene else "flat", reason

    def choose_sync_strength(self, request: GenerationRequest) -> float:
        """As asked for, or the default for a texture, or a part of one; scenes and regions are to differ from place to place."""
        if request.advanced.sync_strength is not None:
            return request.advanced.sync_strength
        made = request.source is None or request.mask is not None
        return self.sync_strength if made and self.is_alike(request) else 0.0

    def is_alike(self, request: GenerationRequest) -> bool:
        """Whether all of the picture is to be alike, as of a texture. A resolved request is as the one it was made from."""
        layout, _ = self.choose_layout(request)
        if layout == "cascade" or request.regions:
            return False
        words = self.scene_words
        if words is None or request.layout != "flat" or request.seamless in ("y", "both"):
            return True  # `auto` has judged, or there is no horizon
        return not words.judge(request.prompt)[0]

    def choose_guidance_scale(self, request: GenerationRequest) -> float:
        """As asked for, or the card's default."""
        return self.default_guidance_scale if request.guidance_scale is None else request.guidance_scale

    def choose_guidance_interval(self, request: GenerationRequest) -> tuple[float, float]:
        """As asked for, or the card's default; where there is no guidance, nothing is limited."""
        if self.choose_guidance_scale(request) == 1.0:
            return ALWAYS_GUIDED
        return request.advanced.guidance_interval or self.guidance_interval or ALWAYS_GUIDED

    def choose_steps(self, request: GenerationRequest) -> int:
        """Steps of the first stage; with a source that is not enlarged, of its whole schedule."""
        default = self.default_steps
        if request.upscale is not None:
            default = max(1, round(default * self.cascade.share(1)))
        return request.advanced.stage(0).steps or request.steps or default

    def choose_control(self, request: GenerationRequest) -> tuple[ControlSettings | None, str]:
        """As asked for, or the one for tiles where a source is enlarged, and why; empty where the request decides."""
        if request.control is not None or request.upscale is None or self.tile_controlnet is None:
            return request.control, ""
        reason = (
            f"what `upscale` takes by itself with model {self.name}: the first by name of those for tiles"
        )
        return ControlSettings(name=self.tile_controlnet), reason

    def choose_augmentation(self, request: GenerationRequest) -> float:
        """Of conditioned stages: at fidelity 1 none, from the default one down the model's own."""
        return self.cascade.augmentation * min((1 - request.chosen_fidelity) / (1 - DEFAULT_FIDELITY), 1.0)

    def choose_attention(self, request: GenerationRequest) -> Attention:
        """What `auto` comes to; a style picture is attended to in the conductor's place."""
        style = request.active_style
        if style is not None and style.has_picture:
            return "conductor"
        asked = request.advanced.attention
        return self.auto_attention if asked == "auto" else asked

    def estimate(
        self, request: GenerationRequest, stages: Sequence[Stage], queries: Sequence[int] | None = None
    ) -> Cost:
        """Count tiles as the grids will have them, memory as weights, canvas, and the batch or the decode.

        Args:
            stages: those of the request.
            queries: tile predictions of each stage, where regions decide them.
        """
        all_tiles = [
            stage.tiling.count_tiles(stage.height_px, stage.width_px, stage.steps, self.vae_scale)
            for stage in stages
        ]
        whole, counts = (
            [stage.count_predictions(own) for stage, own in zip(stages, tiles, strict=True)]
            for tiles in (all_tiles, queries or all_tiles)
        )
        modules = request.advanced.num_modules or self.default_num_modules
        canvas_px = stages[-1].width_px * stages[-1].height_px
        decode_gib = self._find_decode_gib(sqrt(canvas_px))
        canvas_gib = 6 * 4 * self.latent_channels * canvas_px / self.vae_scale**2 / 2**30
        return Cost(
            tiles=sum(counts),
            canvas_tiles=sum(whole),
            unguided_tiles=sum(
                self._count_unguided(stage, own / most if most else 0.0)
                for stage, own, most in zip(stages, queries or all_tiles, all_tiles, strict=True)
            ),
            steps=sum(stage.steps for stage in stages),
            megapixel_steps=round(
                sum(stage.width_px * stage.height_px / 1e6 * stage.steps for stage in stages), 3
            ),
            vram_gib=round(self.weights_gib + canvas_gib + max(modules * self.tile_gib, decode_gib), 2),
        )

    def _count_unguided(self, stage: Stage, share: float) -> int:
        """Of a stage of whose tiles' predictions so many are made."""
        size = stage.height_px, stage.width_px
        tiles = stage.tiling.count_tiles(*size, stage.steps, self.vae_scale, without=stage.guided)
        return round(tiles * share)

    def _find_decode_gib(self, side_px: float) -> float:
        """The larger need of the two known sizes around that of the canvas."""
        smaller = [need.gib for need in self.decode_needs if need.side_px <= side_px]
        larger = [need.gib for need in self.decode_needs if need.side_px >= side_px]
        return max([*smaller[-1:], *larger[:1]], default=0.0)

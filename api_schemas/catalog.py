"""The model card that a worker publishes, and the estimated cost of a request."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, sqrt
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.advanced import MAX_TILE_SIZE_PX, Attention, Positions
from api_schemas.generation import DEFAULT_FIDELITY, MIN_SIDE_PX, GenerationRequest
from api_schemas.layout import (
    Cascade,
    Stage,
    StageAttention,
    choose_resampled,
    choose_tiling,
    fit_conductor,
    fit_one_tile,
    lay_sizes,
    split_steps,
)
from api_schemas.scenes import SceneWords

# Img2img strength of stages that enlarge a source, at fidelity 0 and 1.
_FREEST, _MOST_FAITHFUL = 0.6, 0.1
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
    steps: int = Field(default=0, description="Steps of all stages; 0 in records older than cascades.")
    megapixel_steps: float = Field(description="Width x height x steps of each stage, summed, in millions.")
    vram_gib: float = Field(description="Estimated peak device memory.")


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
        """As asked for, or the default for a texture; scenes and regions are to differ from place to place."""
        if request.advanced.sync_strength is not None:
            return request.advanced.sync_strength
        if request.source is not None:
            return 0.0
        layout, _ = self.choose_layout(request)
        words = self.scene_words
        is_scene = request.layout == "flat" and words is not None and words.judge(request.prompt)[0]
        return self.sync_strength if layout == "flat" and not (is_scene or request.regions) else 0.0

    def lay_stages(self, request: GenerationRequest) -> list[Stage]:
        """The stages that this request needs, from the smallest canvas to the largest.

        A resolved request has the same stages as the one that it was made from.
        """
        if request.upscale is not None:
            return self._lay_enlarging(request, request.upscale)
        whole = self.fit_canvas(request)
        layout, _ = self.choose_layout(request)
        sizes = [whole]
        if layout == "cascade":
            sizes = lay_sizes(*whole, self.native_size_px, self.alignment_px, self.cascade.enlarges)
        if request.source is not None:
            return self._lay_from_source(request, sizes)
        return [self._lay_stage(request, index, size, len(sizes)) for index, size in enumerate(sizes)]

    def _lay_from_source(self, request: GenerationRequest, sizes: list[tuple[int, int]]) -> list[Stage]:
        """Each begins at the tail of its schedule, with the source reduced to its size."""
        strength = 1.0 if request.strength is None else request.strength
        run, skipped = split_steps(self.choose_steps(request), strength)
        if len(sizes) == 1 or run == 0:  # where the first changes nothing, neither do others
            return [self._make_stage(request, sizes[-1], run, skipped, given=sizes[-1])]
        first, *later = (
            self._lay_stage(request, index, size, len(sizes)) for index, size in enumerate(sizes)
        )
        again = choose_resampled(run, skipped)
        first = replace(first, steps=run, skipped=skipped, resampled=again)
        stages = [first, *(_cut(stage, strength) for stage in later)]
        return [replace(stage, given=size) for stage, size in zip(stages, sizes, strict=True)]

    def _lay_enlarging(self, request: GenerationRequest, times: int) -> list[Stage]:
        """Those that enlarge the source to the picture's size."""
        whole = self.fit_canvas(request)
        _, *larger = lay_sizes(*whole, min(whole) / times, self.alignment_px, self.cascade.enlarges)
        sizes = larger or [whole]  # a source may be so small that its canvas is as large
        stages = [self._lay_stage(request, index, size, len(sizes)) for index, size in enumerate(sizes)]
        return [replace(stages[0], given=sizes[0]), *stages[1:]]

    def fit_source(self, request: GenerationRequest) -> tuple[int, int] | None:
        """(width, height) of the canvas that the source is scaled to: the first it is enlarged to, else the picture's."""
        stages = self.lay_stages(request)
        return (stages[-1] if request.upscale is None else stages[0]).given

    def choose_steps(self, request: GenerationRequest) -> int:
        """Steps of the first stage; with a source that is not enlarged, of its whole schedule."""
        default = self.default_steps
        if request.upscale is not None:
            default = max(1, round(default * self.cascade.share(1)))
        return request.advanced.stage(0).steps or request.steps or default

    def _lay_stage(self, request: GenerationRequest, index: int, size: tuple[int, int], stages: int) -> Stage:
        """The stage `index`, counted from 0; to enlarge a source is to begin with a cascade's second one."""
        level = index if request.upscale is None else index + 1
        asked, conditioned = request.advanced.stage(index), level > 0 and self.cascade.conditioned
        share = self.cascade.share(level) / self.cascade.share(level - index)
        steps = asked.steps or max(1, round(self.choose_steps(request) * share))
        strength = 1.0 if level == 0 or conditioned else asked.strength or self._choose_strength(request)
        tile_px = request.advanced.tile_size_px
        if tile_px is None and level == 0 and stages > 1:
            tile_px = fit_one_tile(*size, self.native_size_px, self.max_tile_size_px)
        skipped = ceil(steps / strength - 1e-6) - steps
        return self._make_stage(request, size, steps, skipped, tile_px, conditioned=conditioned)

    def _choose_strength(self, request: GenerationRequest) -> float:
        """Of a stage that starts from a picture; when a source is enlarged, what its fidelity leaves open."""
        if request.upscale is None:
            return self.cascade.strength
        return _FREEST + (_MOST_FAITHFUL - _FREEST) * request.chosen_fidelity

    def choose_augmentation(self, request: GenerationRequest) -> float:
        """Of conditioned stages: at fidelity 1 none, at 0 twice the model's own."""
        return self.cascade.augmentation * (1 - request.chosen_fidelity) / (1 - DEFAULT_FIDELITY)

    def _make_stage(
        self,
        request: GenerationRequest,
        size: tuple[int, int],
        steps: int,
        skipped: int,
        tile_px: int | None = None,
        *,
        conditioned: bool = False,
        given: tuple[int, int] | None = None,
    ) -> Stage:
        tile_px = tile_px or request.advanced.tile_size_px or self.native_size_px
        tiling = choose_tiling(request, tile_px, anchored=skipped > 0 or conditioned)
        # The network of a conditioned stage shares no attention: it sees the whole of the smaller picture in its place.
        attention = None if conditioned else self._plan_attention(request, size, tiling.tile_size_px)
        return Stage(*size, tiling, steps, skipped, conditioned, given, attention)

    def choose_attention(self, request: GenerationRequest) -> Attention:
        """What `auto` comes to; a style picture is attended to in the conductor's place."""
        style = request.active_style
        if style is not None and style.has_picture:
            return "conductor"
        asked = request.advanced.attention
        return self.auto_attention if asked == "auto" else asked

    def _plan_attention(
        self, request: GenerationRequest, size: tuple[int, int], tile_px: int
    ) -> StageAttention | None:
        style = request.active_style
        if style is not None and style.has_picture:
            return self._attend_to_style(request.style_px or (1, 1), style.strength)
        kind, asked = self.choose_attention(request), request.advanced.attention_strength
        strength = self.attention_strength if asked is None else asked
        if kind == "off" or strength == 0 or max(size) <= tile_px:
            return None
        conductor = fit_conductor(*size, tile_px, self.alignment_px, self.max_tile_size_px)
        # On a canvas of two tiles a side the conductor shows as much as neighbourhoods do.
        neighbours = kind == "conductor+neighbours" and max(size) > 2 * tile_px
        return StageAttention(*conductor, strength, neighbours)

    def _attend_to_style(self, size: tuple[int, int], strength: float) -> StageAttention:
        """A style picture of that (width, height), seen at the size that the model knows, in all steps."""
        native_px = self.native_size_px
        conductor = fit_conductor(*size, native_px, self.alignment_px, self.max_tile_size_px)
        return StageAttention(*conductor, strength, share=1.0, styled=True)

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
            steps=sum(stage.steps for stage in stages),
            megapixel_steps=round(
                sum(stage.width_px * stage.height_px / 1e6 * stage.steps for stage in stages), 3
            ),
            vram_gib=round(self.weights_gib + canvas_gib + max(modules * self.tile_gib, decode_gib), 2),
        )

    def _find_decode_gib(self, side_px: float) -> float:
        """The larger need of the two known sizes around that of the canvas."""
        smaller = [need.gib for need in self.decode_needs if need.side_px <= side_px]
        larger = [need.gib for need in self.decode_needs if need.side_px >= side_px]
        return max([*smaller[-1:], *larger[:1]], default=0.0)


def _cut(stage: Stage, strength: float) -> Stage:
    """A later stage of which no more than this share of the schedule is run, but one step is."""
    steps = min(stage.steps, max(int(stage.schedule_steps * strength), 1))
    return replace(stage, steps=steps, skipped=stage.schedule_steps - steps)

"""What a request may say of tiling, attention and decoding."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from api_schemas.fields import RequestPart, pair_of

MAX_TILE_SIZE_PX = 4096
MAX_STAGES = 8

Positions = Literal["local", "global"]
Attention = Literal["off", "conductor", "conductor+neighbours"]
AskedAttention = Literal["auto", "off", "conductor", "conductor+neighbours"]

_Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]


def _require_order(interval: tuple[float, float]) -> tuple[float, float]:
    start, end = interval
    if start > end:
        raise ValueError(f"[start, end] with start at most end, as in [{end:g}, {start:g}]")
    return interval


GuidanceInterval = Annotated[
    tuple[_Share, _Share],
    AfterValidator(_require_order),
    pair_of("[start, end], two numbers from 0 to 1, as in [0.2, 0.9]"),
]
"""(start, end), shares of a whole noise schedule from pure noise on, as of diffusers' guiders."""
ALWAYS_GUIDED: Final = (0.0, 1.0)


class StageSettings(RequestPart):
    """Settings of one stage of a cascade."""

    steps: int | None = Field(default=None, ge=1, le=200, description="Denoising steps of this stage.")
    strength: float | None = Field(
        default=None,
        ge=0.05,
        le=1.0,
        allow_inf_nan=False,
        description="Img2img strength: share of the noise schedule that this stage runs, counted from its end; 1.0 is all of it.",
    )


class AdvancedSettings(RequestPart):
    """Tiling and decoding; a field that is left out takes the default of the model's card."""

    num_modules: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Tiles denoised at the same time, one batch per device. If left out, as many as fit, divided"
        " evenly between the devices. If given, the result has the same bytes on any number of devices.",
    )
    tile_size_px: int | None = Field(
        default=None, ge=128, le=MAX_TILE_SIZE_PX, description="Side of a denoising tile."
    )
    overlap_px: int | None = Field(
        default=None, ge=0, le=2048, description="Smallest overlap of neighbouring tiles."
    )
    tile_grid: Literal["moving", "fixed"] = Field(
        default="moving", description="Whether the grid is shifted at every step."
    )
    positions: Positions = Field(
        default="local",
        description="Coordinates of a transformer's position embeddings: relative to the tile (local) or the canvas (global).",
    )
    attention: AskedAttention = Field(
        default="auto",
        description="What tiles attend to beside themselves, in the first two fifths of a stage's steps. conductor: the"
        " whole canvas, reduced to about one tile; conductor+neighbours: also the area around the tile at half size,"
        " which doubles the cost of these steps. auto: the default of the model's card. A canvas of one tile has nothing"
        " else to attend to, and a conditioned stage of a cascade attends to nothing else. With regions, the conductor is"
        " seen under the request's own prompt.",
    )
    attention_strength: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="What the conductor's keys count, all together, over a tile's own; 0 is off.",
    )
    stages: list[StageSettings] = Field(
        default=[],
        max_length=MAX_STAGES,
        description="Stages of a cascade, smallest first; what is left out takes the defaults of the model's card.",
    )
    guidance_interval: GuidanceInterval | None = Field(
        default=None,
        description="[start, end]: guidance applies in the steps of this part of the noise schedule alone (Kynkäänniemi et al."
        " 2024), 0 being pure noise and 1 the finished picture, rounded as in diffusers' guiders; in the others only the prompt's"
        " branch is computed, in half the time. The later stages of a cascade run the last part of a schedule, so [0, 0.6] guides"
        " none of them at strength 0.4. If left out, the default of the model's card.",
    )
    sync_strength: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="How far the tone and contrast of every part are moved, at each step, towards those of other parts: of"
        " a texture all alike; of a scene, or a picture with regions, those of like tone that are near and in the same"
        " region; of what is inpainted, those of what stays, if that is a texture, too. 0 is off. If left out, the default of the"
        " model's card for textures and parts of them, and 0 for others and where all of a source changes. A re-roll or an extension without a prompt of its own has that of its parent.",
    )
    decode_mode: Literal["auto", "exact", "bounded"] = Field(
        default="auto",
        description="Normalisation statistics of the tiled decoder: of the whole canvas (exact), or of a sample, in less memory"
        " (bounded), where above 4096x4096 px attention also sees means of neighbouring latent pixels.",
    )

    def stage(self, level: int) -> StageSettings:
        """What is set for a stage, counted from 0."""
        return self.stages[level] if level < len(self.stages) else StageSettings()

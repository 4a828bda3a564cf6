"""How a large picture is generated in stages: at the model's native size first, then twice as large each time."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.tiling import Tiling

# What one tile may measure at most when the whole of the smallest stage is one: a panorama is not.
_LONGEST_ONE_TILE = 2


class Cascade(BaseModel):
    """A model's defaults for the stages of a cascade; a request may override them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: list[int] = Field(
        default=[30, 15, 12],
        min_length=1,
        description="Steps of each stage, used as ratios: a request's `steps` apply to the first stage."
        " Stages beyond the end of the list use the last value.",
    )
    strength: float = Field(
        default=0.4, ge=0.05, le=1.0, description="Img2img strength of every stage after the first."
    )
    low_band: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Initial strength of the guidance towards the low frequencies of the stage before; 0 is off.",
    )

    def share(self, level: int) -> float:
        """Steps of the stage `level`, counted from 0, over those of the first."""
        return self.steps[min(level, len(self.steps) - 1)] / self.steps[0]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, every choice made."""

    width_px: int
    height_px: int
    tiling: Tiling
    steps: int
    strength: float

    @property
    def schedule_steps(self) -> int:
        """Steps of the whole schedule; a stage runs the last `steps` of them."""
        return round(self.steps / self.strength)


def lay_sizes(width_px: int, height_px: int, native_px: int, unit_px: int) -> list[tuple[int, int]]:
    """(width, height) of each stage: the short side native, doubled until the picture's own size is reached.

    Args:
        unit_px: sides are multiples of this.
    """
    sizes: list[tuple[int, int]] = []
    scale = native_px / min(width_px, height_px)
    while scale < 1:
        sizes.append((_align(width_px * scale, unit_px), _align(height_px * scale, unit_px)))
        scale *= 2
    return [*(size for size in sizes if size != (width_px, height_px)), (width_px, height_px)]


def fit_one_tile(width_px: int, height_px: int, native_px: int, most_px: int) -> int | None:
    """Side of a tile that covers a stage of that size, if the model can be given it."""
    longest_px = max(width_px, height_px)
    return longest_px if longest_px <= min(_LONGEST_ONE_TILE * native_px, most_px) else None


def _align(side_px: float, unit_px: int) -> int:
    return max(round(side_px / unit_px), 1) * unit_px

"""How a large picture is sung in stages: at the model's native size first, then twice as large each time."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.tiling import Tiling

# What one tile may measure at most when the whole of the smallest stage is one: a panorama is not.
_LONGEST_ONE_TILE = 2


class Cascade(BaseModel):
    """What a model does where a request does not say otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: list[int] = Field(
        default=[30, 15, 12],
        min_length=1,
        description="Of each stage, in proportion: a request's `steps` are the first stage's."
        " Further stages take as many as the last.",
    )
    strength: float = Field(
        default=0.4, ge=0.05, le=1.0, description="Share of the schedule that each later stage sings again."
    )
    low_band: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="How firmly a stage begins to hold on to large forms; 0 is off.",
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
        """Of the whole schedule, of which `steps` are sung."""
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

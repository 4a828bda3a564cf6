"""Everything that is decided before the first step. Sizes are latent pixels, order (height, width)."""

from dataclasses import dataclass, field
from typing import Literal

from worker.engine.grid import Tile, TileGrid

DecodeMode = Literal["exact", "bounded"]


@dataclass(frozen=True, slots=True)
class DenoisePlan:
    """Which tiles are sung at which step.

    Args:
        grids: one grid for each step, in order.
        steps: number of scheduler steps.
        first_step: where to begin; > 0 when resumed.
    """

    grids: tuple[TileGrid, ...]
    first_step: int = 0

    @property
    def steps(self) -> int:
        return len(self.grids)

    def tiles_at(self, index: int) -> tuple[Tile, ...]:
        return self.grids[index].tiles


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How the clean canvas becomes pixels.

    Args:
        tile_size: side of a decode tile, latent pixels, halo not counted.
        mode: statistics of the whole canvas, or of a sample of tiles.
        memory_bytes: what held activations may take before they are spilled to `spill_dir`.
    """

    tile_size: int = 64
    mode: DecodeMode = "exact"
    memory_bytes: int = 1 << 30
    spill_dir: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """One picture, ready to be sung.

    Args:
        wrap: whether the canvas continues into itself, (vertically, horizontally).
    """

    seed: int
    channels: int
    height: int
    width: int
    wrap: tuple[bool, bool]
    denoise: DenoisePlan
    decode: DecodePlan = field(default_factory=DecodePlan)

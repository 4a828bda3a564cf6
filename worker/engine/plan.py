"""Everything that is decided before the first step. Sizes are latent pixels, order (height, width)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, cos, sin
from typing import Literal

from torch import Tensor

from worker.engine.attention import AttentionPlan
from worker.engine.canvas import Plane, Rectangle
from worker.engine.grid import TileGrid, shift_at
from worker.engine.inpaint import Mask
from worker.engine.regions import Regions
from worker.engine.start import Given, GivenPixels, Noise, Picture, Start, Upscale

DecodeMode = Literal["auto", "exact", "bounded"]
BitDepth = Literal[8, 16]


@dataclass(frozen=True, slots=True)
class DenoisePlan:
    """Which tiles are denoised at which step.

    A moving grid is shifted at every step, so that no line of the picture is a border twice
    (Frolov et al., "SpotDiffusion", 2024, here in two dimensions).

    Args:
        overlap: what neighbours share at least.
        outer_overlap: the same in the outer steps: the first steps decide colours that all tiles
            share, and after the last no step hides a border.
        moving: whether the grid is shifted; in the outer steps only along axes that wrap.
        outer_shares: how much of the steps is outer, at the (beginning, end).
        regions: with prompts of their own, if there are any.
        mask: what is made, if not all; tiles that it does not touch are left out.
        resampled: the step that is predicted twice, so that what is made fits what stays; None: none is.
        guided: (start, end) of the steps that are guided, as shares of them. The others are predicted under the prompt
            alone (Kynkäänniemi et al. 2024).
        attention: what tiles attend to beside themselves, or None; one that is the whole canvas has nothing beside it,
            except for a style picture.
    """

    canvas: Plane
    tile_size: int
    overlap: int
    outer_overlap: int
    moving: bool
    seed: int
    outer_shares: tuple[float, float] = (0.0, 0.0)
    regions: Regions | None = None
    mask: Mask | None = None
    attention: AttentionPlan | None = None
    resampled: int | None = None
    guided: tuple[float, float] = (0.0, 1.0)

    def is_guided_at(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps` takes all branches of guidance."""
        first, end = (round(share * steps) for share in self.guided)
        return first <= index < end

    def count_rounds(self, index: int) -> int:
        """How often the tiles of step `index` are predicted."""
        return 2 if self.mask is not None and self.resampled == index else 1

    def tiles_at(self, index: int, steps: int) -> list[Rectangle]:
        """The tiles that are predicted at step `index` of `steps`, in the order in which they are fused."""
        tiles = self.grid_at(index, steps).tiles
        return [tile for tile in tiles if self.mask is None or self.mask.touches(tile)]

    def grid_at(self, index: int, steps: int) -> TileGrid:
        """The grid of step `index` of `steps`."""
        first, last = (ceil(steps * share) for share in self.outer_shares)
        outer = index < first or steps - 1 - index < last
        down, right = shift_at(index, self.canvas, self.tile_size, self.seed) if self.moving else (0, 0)
        if outer and self.outer_overlap:
            # Overlap hides borders there, and where the canvas ends a shifted grid needs a row or column more.
            down, right = down * self.canvas.wrap[0], right * self.canvas.wrap[1]
        return TileGrid.lay(
            self.canvas,
            tile_size=self.tile_size,
            overlap=self.outer_overlap if outer else self.overlap,
            shift=(down, right),
        )

    def attention_at(self, index: int, steps: int) -> AttentionPlan | None:
        """What the tiles of step `index` of `steps` attend to."""
        plan = self.attention
        if plan is None or not plan.applies_at(index, steps):
            return None
        return plan if plan.styled or self.tile_shape != self.canvas.size else None

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Of all tiles of all steps, (height, width): a tile is no larger than the canvas."""
        tile = self.grid_at(0, 1).tiles[0]
        return tile.height, tile.width

    def count_tiles(self, steps: int) -> list[int]:
        """Tile predictions of each step, as `count_predictions` counts them."""
        return [
            self.count_rounds(index) * self.count_predictions(self.tiles_at(index, steps))
            for index in range(steps)
        ]

    def weigh_tiles(self, steps: int) -> list[float]:
        """The same in tiles that are guided, as `weigh` has it."""
        return [self.weigh(tiles, index, steps) for index, tiles in enumerate(self.count_tiles(steps))]

    def weigh(self, tiles: int, index: int, steps: int) -> float:
        """How many guided tiles take as long as these of step `index`: one branch of two is half the work."""
        return tiles if self.is_guided_at(index, steps) else tiles / 2

    def count_predictions(self, tiles: Sequence[Rectangle]) -> int:
        """One for each tile, and under each prompt that counts in it. Branches of guidance are not counted."""
        if self.regions is None:
            return len(tiles)
        return sum(len(self.regions.find_prompts(tile)) for tile in tiles)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One denoising of the whole canvas at one size.

    Args:
        steps: that are run.
        start: what the first step is given.
        modules: tiles that one rank denoises at the same time.
        even: whether batches may be smaller than `modules`, as `Ensemble` says.
        shown: how much of the canvas' (height, width) the picture covers, from the top left corner on.
        sync_strength: how far local statistics are moved towards those of other places, in [0, 1]; 0 is off.
        synced_evenly: whether every place counts alike there, as `Sync` has it.
        style: a picture whose style the stage takes, if it does.
        kept: beside what the stage before has made, the picture at this stage's size that stays where the mask makes nothing.
        keeps_detail: whether the stage begins with that picture where it is made, too, and goes by the stage before only in
            the large forms.
    """

    denoise: DenoisePlan
    steps: int
    start: Start = field(default_factory=Noise)
    modules: int = 1
    even: bool = False
    shown: tuple[float, float] = (1.0, 1.0)
    sync_strength: float = 0.0
    synced_evenly: bool = True
    style: GivenPixels | None = None
    kept: Given | None = None
    keeps_detail: bool = False

    @property
    def canvas(self) -> Plane:
        return self.denoise.canvas

    def shown_px(self, scale: int) -> tuple[int, int]:
        """(height, width) of the picture on this canvas, of `scale` pixels per latent pixel."""
        canvas = self.canvas
        return round(canvas.height * scale * self.shown[0]), round(canvas.width * scale * self.shown[1])

    @property
    def whole(self) -> "StagePlan":
        """The same from pure noise on: what a scheduler must be set to, so that `steps` are its tail."""
        match self.start:
            case Noise():
                return self
            case Picture(skipped):
                return replace(self, steps=self.steps + skipped, start=Noise())
            case Upscale(skipped=skipped):
                return replace(self, steps=self.steps + skipped, start=replace(self.start, skipped=0))


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How the clean canvas becomes pixels.

    Args:
        tile_size: side of a decode tile, halo not counted.
        mode: statistics of the whole canvas, or of a sample of tiles; `auto` is exact while what
            must be held stays under four times `memory_bytes`.
        memory_bytes: what held activations may take of the device before they are spilled: to main
            memory from a GPU, then to `spill_dir`.
        most_keys: pixels that attention of a bounded decode, and of encoding, is answered by; larger canvases answer by means
            of 2 x 2 pixels or more.
        recompute: hold tiles only where that is cheaper than to compute them once more, as
            vae/memory.py says, rather than before every normalisation; None: on a GPU.
    """

    tile_size: int = 64
    mode: DecodeMode = "auto"
    memory_bytes: int = 1 << 30
    spill_dir: str | None = None
    most_keys: int = 512**2
    recompute: bool | None = None


@dataclass(frozen=True, slots=True)
class Variation:
    """Neighbouring noise: cos(angle) * the noise so far + sin(angle) * that of `seed`.

    Both are standard normal and independent, so their sum is too, whatever the angle.

    Args:
        angle: radians, in [0, pi / 2].
    """

    seed: int
    angle: float

    def mix(self, noise: Tensor, other: Tensor) -> Tensor:
        """The noise so far and that of `seed`, (C, H, W) each."""
        return cos(self.angle) * noise + sin(self.angle) * other


@dataclass(frozen=True, slots=True)
class Paste:
    """The picture is an earlier one, of which a part or all is made again.

    Args:
        overlay: (row, rows (h, W, 3) from there on) -> the same in the earlier one's colours, and with its pixels where
            they stay.
        part: of the canvas; outside of it all stays, and nothing is decoded. None: all of it.
        moments: that the earlier picture was decoded by; None: this canvas' own.
    """

    overlay: Callable[[int, Tensor], Tensor]
    part: Rectangle | None = None
    moments: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """One picture, ready to be made.

    Args:
        channels: of the latent.
        stages: from the smallest canvas to the picture's own; at least one.
        bit_depth: of the finished rows, bits a channel. 16 are decoded in float32: of half types,
            float16 has 11 bits of precision and bfloat16 has 8.
        variations: steps from the seed's initial noise to a neighbouring one.
        paste: what is kept of an earlier picture, if there is one.
    """

    seed: int
    channels: int
    stages: tuple[StagePlan, ...]
    decode: DecodePlan = field(default_factory=DecodePlan)
    bit_depth: BitDepth = 8
    variations: tuple[Variation, ...] = ()
    paste: Paste | None = None

    @property
    def canvas(self) -> Plane:
        """Of the last stage: the picture's own size."""
        return self.stages[-1].canvas

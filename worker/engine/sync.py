"""Sync of statistics: every place of a texture takes on the tone and contrast that all others have."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.canvas import Plane, Rectangle
from worker.engine.inpaint import Inpainting
from worker.engine.resample import BILINEAR, enlarge
from worker.engine.scheduler import Scheduler

_CELL = 8  # latent pixels: statistics are kept for squares of these
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_MOST_GAIN = 2.0  # of a band: what is almost flat stays so
_AROUND = 64  # latent pixels around what is made that it goes by: of a large canvas the rest costs seconds


class Sync:
    """Moves the clean estimate's local statistics towards their mean over the whole canvas.

    AdaIN (Huang & Belongie 2017, eq. 8) in windows of the fused canvas, about 24 latent pixels wide, which attend to
    all windows alike: the mean, and the deviations of what is coarser and what is finer than two latent pixels.
    Windows and not tiles, since statistics drift inside of a tile, too.

    Args:
        strength: share of the way, in (0, 1].
        inpainting: of which what is made takes on the mean statistics of what stays around it; None: all is made.
    """

    def __init__(self, strength: float, canvas: Plane, inpainting: Inpainting | None = None) -> None:
        self._strength, self._whole = strength, canvas
        self._part = (
            canvas.whole if inpainting is None else _find_surroundings(canvas, inpainting.mask.bounds)
        )
        alone = self._part == canvas.whole
        self._canvas = canvas if alone else Plane(self._part.height, self._part.width)
        self._cells = self._canvas.resized(-(-self._part.height // _CELL), -(-self._part.width // _CELL))
        self._kept = inpainting and canvas.gather(inpainting.reference, self._part)
        self._made = inpainting and canvas.gather(inpainting.mask.weights, self._part)
        self._counted = None if self._made is None else self._count(self._made)

    def guide(self, prediction: Tensor, latent: Tensor, scheduler: Scheduler, index: int) -> Tensor:
        """The fused prediction (C, H, W) of a step, its clean estimate synced."""
        if self._kept is None or self._made is None:
            clean = scheduler.estimate_clean(latent, prediction, index)
            return scheduler.guide_clean(prediction, self._find_change(clean), index)
        own, noisy = (self._whole.gather(each, self._part) for each in (prediction, latent))
        clean = torch.lerp(self._kept, scheduler.estimate_clean(noisy, own, index), self._made)
        guided = scheduler.guide_clean(own, self._find_change(clean).mul_(self._made), index)
        synced = prediction.clone()
        for outer, inner in self._whole.pieces(self._part):
            outer.slice(synced).copy_(inner.slice(guided))
        return synced

    def _find_change(self, clean: Tensor) -> Tensor:
        return torch.stack([self._move(channel) for channel in clean]).sub_(clean)

    def _move(self, channel: Tensor) -> Tensor:
        """A channel (H, W), all windows of which have the same statistics at full strength."""
        means = self._smooth(channel)
        tone = self._spread(means)
        coarse = _blur(channel, self._canvas)
        moved = tone.lerp(self._average(means), self._strength)
        return moved + self._even_out(coarse - tone) + self._even_out(channel - coarse)

    def _even_out(self, band: Tensor) -> Tensor:
        """A band (H, W) with the same deviation everywhere."""
        power = self._smooth(band.square()).clamp(min=1e-8)
        gain = (self._average(power) / power).pow(self._strength / 2)
        return band * self._spread(gain.clamp(1 / _MOST_GAIN, _MOST_GAIN))

    def _average(self, cells: Tensor) -> Tensor:
        """Of cells (h, w), those that count."""
        return cells.mean() if self._counted is None else (cells * self._counted).sum()

    def _count(self, made: Tensor) -> Tensor | None:
        """How much each cell (h, w) counts: none of whose window is made; None: all alike, where all windows have some."""
        counted = (self._smooth((made > 0).float()) == 0).float()
        return counted / counted.sum() if counted.any() else None

    def _smooth(self, state: Tensor) -> Tensor:
        """The mean of each cell's window, (h, w), of a state (H, W)."""
        return _blur(F.adaptive_avg_pool2d(state[None], self._cells.size)[0], self._cells)

    def _spread(self, cells: Tensor) -> Tensor:
        """A value of each cell (h, w) at each latent pixel, (H, W)."""
        return enlarge(cells[None], self._canvas, self._canvas.whole, BILINEAR)[0]


def _find_surroundings(canvas: Plane, made: Rectangle) -> Rectangle:
    """What is made and what lies around it; the whole canvas, if that is as large on an axis."""
    part, _ = canvas.halo(made, _AROUND)
    return part if part.height < canvas.height and part.width < canvas.width else canvas.whole


def _blur(state: Tensor, canvas: Plane) -> Tensor:
    """Binomial low-pass of a state (H, W)."""
    for axis, side in enumerate(canvas.size):
        padded = canvas.pad(state, len(_BINOMIAL) // 2, axis)
        state = torch.stack([padded.narrow(axis, place, side) * w for place, w in enumerate(_BINOMIAL)]).sum(
            0
        )
    return state

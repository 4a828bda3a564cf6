"""Sync of statistics: every place of a canvas takes on the tone and contrast that others have, of a texture all alike."""

from dataclasses import dataclass
from math import ceil

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
_MOST_KEYS = 32  # along each axis: on canvases with more cells, means of several are attended to
_ALIKE = 0.5  # distance of tones, in their deviations over the canvas, root mean square over channels
_NEAR = 0.25  # distance, in sides of the canvas
_EVEN = 0.012  # share of variance between windows: of 21 real textures 0.002 to 0.028 (19 below this), of parts of photographs 0.013 to 0.22
_AROUND = 64  # latent pixels around what is made that it goes by: of a large canvas the rest costs seconds


class Sync:
    """Moves the clean estimate's local statistics towards those of other places.

    AdaIN (Huang & Belongie 2017, eq. 8) in windows of the fused canvas, about 24 latent pixels wide: the mean, and
    the deviations of what is coarser and what is finer than two latent pixels.
    Windows and not tiles, since statistics drift inside of a tile, too.

    Args:
        strength: share of the way, in (0, 1].
        evenly: whether a window attends to all alike, as a texture wants it; else the more to a window, the more alike
            its tone, the nearer, and the more of the same region it is.
        regions: weights of each prompt, (prompts, H, W), if there are several.
        inpainting: of which what is made attends to what stays around it alone; None: all is made.
    """

    def __init__(
        self,
        strength: float,
        canvas: Plane,
        *,
        evenly: bool = True,
        regions: Tensor | None = None,
        inpainting: Inpainting | None = None,
    ) -> None:
        self._strength, self._whole, self._evenly = strength, canvas, evenly
        self._part = (
            canvas.whole if inpainting is None else _find_surroundings(canvas, inpainting.mask.bounds)
        )
        alone = self._part == canvas.whole
        self._canvas = canvas if alone else Plane(self._part.height, self._part.width)
        self._cells = self._canvas.resized(ceil(self._part.height / _CELL), ceil(self._part.width / _CELL))
        self._regions = None if regions is None else canvas.gather(regions, self._part)
        self._kept = inpainting and canvas.gather(inpainting.reference, self._part)
        self._made = inpainting and canvas.gather(inpainting.mask.weights, self._part)
        self._counted = None if self._made is None else self._count(self._made)

    def has_example(self) -> bool:
        """Whether what stays is alike everywhere, so that what is made can be as it: grass must not take the sky's tone."""
        if self._kept is None or self._made is None or not self._evenly:
            return True
        means = torch.stack([self._smooth(channel) for channel in self._kept])
        shares = torch.full_like(means[0], 1 / means[0].numel()) if self._counted is None else self._counted
        middle = (means * shares).sum((1, 2), keepdim=True)
        between = ((means - middle).square() * shares).sum()
        return bool(between < _EVEN * self._kept[:, self._made == 0].var(1).sum())

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
        others = None if self._evenly else self._attend(clean)
        return torch.stack([self._move(channel, others) for channel in clean]).sub_(clean)

    def _attend(self, clean: Tensor) -> "_Others":
        tones, regions = torch.stack([self._smooth(channel) for channel in clean]), self._regions
        regions = None if regions is None else regions.to(clean.device)
        return _Others.find(tones, self._cells, regions, self._counted)

    def _move(self, channel: Tensor, others: "_Others | None") -> Tensor:
        """A channel (H, W), all windows of which have at full strength the statistics that they attend to."""
        means = self._smooth(channel)
        tone = self._spread(means)
        coarse = _blur(channel, self._canvas)
        wanted = self._average(means) if others is None else self._spread(others.average(means))
        moved = tone.lerp(wanted, self._strength)
        return moved + self._even_out(coarse - tone, others) + self._even_out(channel - coarse, others)

    def _even_out(self, band: Tensor, others: "_Others | None") -> Tensor:
        """A band (H, W) with the deviation that others have, of a texture the same everywhere."""
        power = self._smooth(band.square()).clamp(min=1e-8)
        wanted = self._average(power) if others is None else others.average(power)
        gain = (wanted / power).pow(self._strength / 2)
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


@dataclass(frozen=True, slots=True, eq=False)
class _Others:
    """How much each window attends to each other.

    Args:
        weights: (h * w, keys); rows add up to one.
        keys: (rows, columns) of the windows that are attended to.
    """

    weights: Tensor
    keys: tuple[int, int]

    @classmethod
    def find(cls, tones: Tensor, cells: Plane, regions: Tensor | None, counted: Tensor | None) -> "_Others":
        """By their mean tones, (C, h, w), and their places on a canvas of so many cells, of which not all may count."""
        rows, columns = (min(side, _MOST_KEYS) for side in cells.size)
        scaled = tones / tones.std(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        keys = F.adaptive_avg_pool2d(scaled, (rows, columns)).flatten(1).T
        far = torch.cdist(scaled.flatten(1).T, keys).square() / (len(tones) * _ALIKE**2)
        weights = far.add_(_measure_distance(cells, (rows, columns), tones.device)).mul_(-0.5).exp_()
        if regions is not None:
            shares = [
                F.adaptive_avg_pool2d(regions, size).flatten(1) for size in (cells.size, (rows, columns))
            ]
            weights *= shares[0].T @ shares[1]
        if counted is not None:
            weights *= F.adaptive_avg_pool2d(counted[None], (rows, columns)).flatten()
        return cls(weights / weights.sum(1, keepdim=True).clamp(min=1e-30), (rows, columns))

    def average(self, values: Tensor) -> Tensor:
        """What windows attend to of (h, w) values, (h, w)."""
        keys = F.adaptive_avg_pool2d(values[None], self.keys).flatten()
        return (self.weights @ keys).view(values.shape)


def _measure_distance(cells: Plane, keys: tuple[int, int], device: torch.device) -> Tensor:
    """Squared distance of every cell to every key, (h * w, keys), in units of `_NEAR` sides; round where the canvas wraps."""
    down, right = (
        _measure_along(side, count, wraps)
        for side, count, wraps in zip(cells.size, keys, cells.wrap, strict=True)
    )
    return (
        (down[:, None, :, None] + right[None, :, None, :])
        .reshape(down.shape[0] * right.shape[0], -1)
        .to(device)
    )


def _measure_along(side: int, count: int, wraps: bool) -> Tensor:
    """The same on one axis, (side, count)."""
    places, keys = ((torch.arange(number) + 0.5) / number for number in (side, count))
    far = (places[:, None] - keys).abs()
    return (torch.minimum(far, 1 - far) if wraps else far).div(_NEAR).square()


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

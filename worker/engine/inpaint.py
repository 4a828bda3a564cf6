"""Inpainting: a part of the canvas is made, and the rest stays what a given picture has there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.engine.canvas import Paint, Plane, Rectangle
from worker.engine.scheduler import Scheduler


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Where a canvas is made.

    Args:
        weights: (H, W), float32, in [0, 1]: 1 is made, 0 stays.
        canvas: that they lie on.
        crossed: where the weight is above zero, on the host, which asks for every tile.
    """

    weights: Tensor
    canvas: Plane
    crossed: Tensor

    @classmethod
    def lay(cls, weights: Tensor, canvas: Plane) -> "Mask":
        return cls(weights, canvas, (weights > 0).cpu())

    def on(self, device: torch.device) -> "Mask":
        """The same, with the weights on a device."""
        return replace(self, weights=self.weights.to(device))

    @property
    def bounds(self) -> Rectangle:
        """The smallest rectangle that holds all that is made; the whole canvas, if nothing is."""
        top, bottom = _find_span(self.crossed.any(1))
        left, right = _find_span(self.crossed.any(0))
        return Rectangle(top, left, bottom - top, right - left)

    def blank(self, paint: Paint, scale: int) -> Paint:
        """The same picture with grey where the canvas is made, of `scale` pixels per latent pixel and axis."""
        picture = self.canvas.scaled(scale)

        def paint_rest(part: Rectangle) -> Tensor:
            rows = torch.arange(part.top, part.top + part.height)
            columns = torch.arange(part.left, part.left + part.width)
            crossed = self.crossed[picture.fold(rows, 0) // scale][:, picture.fold(columns, 1) // scale]
            image = paint(part)
            return image.masked_fill(crossed.to(image.device), 0)

        return paint_rest

    def touches(self, tile: Rectangle) -> bool:
        """Whether anything in a tile is made. The others need no prediction."""
        return bool(self.canvas.gather(self.crossed, tile).any())


def _find_span(crossed: Tensor) -> tuple[int, int]:
    """From the first that is crossed to behind the last; all, if none is."""
    places = [int(place) for place in crossed.nonzero()]
    return (places[0], places[-1] + 1) if places else (0, len(crossed))


@dataclass(frozen=True, slots=True, eq=False)
class Inpainting:
    """Puts the given picture back after every step, under as much noise as the next one expects.

    Lugmayr et al., "RePaint" (2022), eq. 8, as diffusers' inpainting pipelines do it for models that were not trained
    for it; with its resampling (section 4.2) only where a plan asks for that.

    Args:
        reference: clean latent (C, H, W) of the given picture.
        noise: of the canvas' beginning, (C, H, W).
        trained: whether the model sees what stays, and so makes it again as it was: then it is put back only where
            no tile was predicted, as diffusers' pipelines do with such a model.
    """

    mask: Mask
    reference: Tensor
    noise: Tensor
    trained: bool = False

    def keep(self, latent: Tensor, scheduler: Scheduler, index: int, tiles: Sequence[Rectangle]) -> Tensor:
        """The canvas (C, H, W) before step `index`, or after the last, with what stays put back: a new tensor.

        Args:
            tiles: that were predicted in the step before.
        """
        kept = scheduler.add_noise(self.reference, self.noise, index)
        return torch.lerp(kept, latent, self._cover(tiles) if self.trained else self.mask.weights)

    def resample(self, prediction: Tensor, latent: Tensor, scheduler: Scheduler, index: int) -> Tensor:
        """The canvas (C, H, W) before step `index` once more: its clean estimate beside what stays, under other noise.

        Other noise, since predicting from the same again, or that of the next pixels, adds up its errors.
        """
        estimate = scheduler.estimate_clean(latent, prediction, index)
        height, width = self.noise.shape[-2:]
        noise = self.noise.roll((height // 4, width // 4), (-2, -1))
        return scheduler.add_noise(torch.lerp(self.reference, estimate, self.mask.weights), noise, index)

    def _cover(self, tiles: Sequence[Rectangle]) -> Tensor:
        """1 where a tile lies, else 0; (H, W)."""
        covered = torch.zeros_like(self.mask.weights)
        for piece in (piece for tile in tiles for piece, _ in self.mask.canvas.pieces(tile)):
            piece.slice(covered).fill_(1)
        return covered

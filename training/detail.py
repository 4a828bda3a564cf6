"""How much fine detail two pictures have at the same place, whatever its form."""

import torch
from torch import Tensor
from torch.nn import functional

_OCTAVES = 2  # above an eighth of the sampling rate
_WINDOW_PX = 8  # of the octave's own pixels
_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)  # over 16


def detail_distance(image: Tensor, reference: Tensor) -> Tensor:
    """Mean difference of the local deviation in the highest octaves of a Laplacian pyramid (Burt & Adelson 1983), ().

    An absolute or squared error prefers to leave out what it cannot place; this one asks that as much be there.

    Args:
        image: (B, C, H, W); so is `reference`.
    """
    distances: list[Tensor] = []
    for _ in range(_OCTAVES):
        low, wanted_low = _blur(image), _blur(reference)
        distances.append((_spread(image - low) - _spread(reference - wanted_low)).abs().mean())
        image, reference = functional.avg_pool2d(low, 2), functional.avg_pool2d(wanted_low, 2)
    return torch.stack(distances).sum()


def _spread(band: Tensor) -> Tensor:
    """Deviation of windows that overlap by half."""
    return functional.avg_pool2d(band.square(), _WINDOW_PX, _WINDOW_PX // 2).add(1e-6).sqrt()


def _blur(image: Tensor) -> Tensor:
    channels = image.shape[1]
    line = torch.tensor(_BINOMIAL, device=image.device, dtype=image.dtype) / 16
    kernel = (line[:, None] * line).expand(channels, 1, -1, -1)
    return functional.conv2d(functional.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)

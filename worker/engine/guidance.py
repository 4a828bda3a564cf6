"""Low-band guidance: a stage keeps the large forms of the stage before, and is free in the small ones."""

# torch.fft carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from functools import lru_cache

import torch
from torch import Tensor

from worker.engine.canvas import Plane
from worker.engine.scheduler import Scheduler
from worker.engine.start import LowBandPlan
from worker.engine.style import tint

_ORDER = 4  # of the Butterworth filter, as in FreeInit (Wu et al. 2024) and HiFlow


class LowBand:
    """Pulls the clean estimate's low band to a reference: x̂0 += α(step) · LP(x̂0_ref - x̂0).

    Bu et al., "HiFlow" (2025), eq. 5, where α falls in a straight line to 0; the filter is linear, so
    the difference is filtered once.

    Args:
        reference: clean latent (C, H, W) of the stage before, at this stage's size.
        inpainted: weights (H, W) of what is made; None: all of it. What stays differs from the reference nowhere,
            though no tile may have been predicted there.
    """

    def __init__(
        self, plan: LowBandPlan, reference: Tensor, canvas: Plane, inpainted: Tensor | None = None
    ) -> None:
        self._plan, self._canvas = plan, canvas
        self.reference, self._inpainted = reference, inpainted

    def guide(
        self,
        prediction: Tensor,
        latent: Tensor,
        scheduler: Scheduler,
        index: int,
        steps: int,
    ) -> Tensor:
        """The fused prediction (C, H, W), guided, at step `index` of `steps`."""
        plan = self._plan
        weight = plan.start + (plan.end - plan.start) * index / max(steps - 1, 1)
        if weight == 0:
            return prediction
        clean = scheduler.estimate_clean(latent, prediction, index)
        missing = (tint(self.reference, clean, plan.tint) if plan.tint else self.reference) - clean
        if self._inpainted is not None:
            missing *= self._inpainted
        passed = missing if plan.cutoff is None else low_pass(missing, plan.cutoff, self._canvas)
        change = passed.mul_(weight)
        return scheduler.guide_clean(prediction, change, index)


def low_pass(state: Tensor, cutoff: float, canvas: Plane) -> Tensor:
    """Butterworth low-pass of a state (C, H, W) of a canvas, channel by channel: nothing larger than a channel's spectrum.

    A Fourier transform takes every axis for a ring. On an axis that does not wrap the canvas is
    mirrored first, so that the two ends of that ring are alike.

    Args:
        cutoff: where half is left, as a share of the highest frequency of each axis.
    """
    filtered = torch.empty_like(state)
    for target, channel in zip(filtered, state, strict=True):
        ring = canvas.to_ring(channel)
        response = _butterworth(*ring.shape, cutoff, ring.device)
        passed = torch.fft.irfft2(torch.fft.rfft2(ring).mul_(response), s=ring.shape)
        target.copy_(canvas.whole.slice(passed))
    return filtered


@lru_cache(maxsize=4)
def _butterworth(height: int, width: int, cutoff: float, device: torch.device) -> Tensor:
    """Response for a `rfft2` of that size, float32: 1 / (1 + (d / cutoff)^(2n)). Kept on the device."""
    down, right = 2 * torch.fft.fftfreq(height), 2 * torch.fft.rfftfreq(width)
    squared = down[:, None].square() + right[None, :].square()
    return (1 / (1 + (squared / cutoff**2) ** _ORDER)).to(device)

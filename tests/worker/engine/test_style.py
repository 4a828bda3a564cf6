"""The source with a style's tones, and the low band of one whose tones are free."""

import numpy as np
import pytest
import torch

from worker.adapters.toy import FlowEulerScheduler
from worker.engine.canvas import Plane
from worker.engine.guidance import LowBand
from worker.engine.start import LowBandPlan
from worker.engine.style import Style, tint

CONTENT = 3 * torch.randn(4, 24, 32, generator=torch.Generator().manual_seed(1)) - 2
LIKE = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(2)) * 0.5 + 1


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_a_latent_takes_the_mean_and_deviation_of_another(strength: float) -> None:
    """Huang and Belongie (2017), eq. 8."""
    content, like = CONTENT.double().numpy(), LIKE.double().numpy()
    styled = [
        each.std() / own.std() * (own - own.mean()) + each.mean()
        for own, each in zip(content, like, strict=True)
    ]
    expected = content + strength * (np.stack(styled) - content)
    np.testing.assert_allclose(tint(CONTENT, LIKE, strength).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_style_is_seen_under_as_much_noise_as_the_canvas() -> None:
    scheduler, noise = FlowEulerScheduler(4), torch.randn_like(LIKE)
    view = Style(LIKE, noise, 0.5).look(scheduler, 2)
    assert view.timestep == scheduler.timesteps[2]
    torch.testing.assert_close(view.crop, scheduler.add_noise(LIKE, noise, 2))


def test_a_low_band_whose_tones_are_free_pulls_to_the_references_forms_alone() -> None:
    """A reference of other tones is the same reference then."""
    scheduler, canvas = FlowEulerScheduler(4), Plane(24, 32)
    prediction, latent = torch.randn(2, 4, 24, 32, generator=torch.Generator().manual_seed(3))

    def guide(reference: torch.Tensor, share: float) -> torch.Tensor:
        return LowBand(LowBandPlan(tint=share), reference, canvas).guide(prediction, latent, scheduler, 1, 4)

    free = guide(CONTENT, 1.0)
    torch.testing.assert_close(guide(CONTENT * 0.2 + 5, 1.0), free, rtol=1e-3, atol=1e-3)
    assert (free - prediction).abs().max() > 0.1
    assert (guide(CONTENT * 0.2 + 5, 0.0) - guide(CONTENT, 0.0)).abs().max() > 1

"""Detail that two pictures have at the same place."""

import pytest
import torch

from training.detail import detail_distance


def test_grain_of_another_form_is_as_much_detail_and_blurred_grain_is_less() -> None:
    torch.manual_seed(0)
    one, other = 0.1 * torch.randn(2, 1, 3, 128, 128)
    blurred = torch.nn.functional.avg_pool2d(one, 3, stride=1, padding=1)
    assert detail_distance(one, one) == 0
    assert detail_distance(one, other) < 0.3 * detail_distance(one, blurred)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_it_grows_with_what_is_missing(share: float) -> None:
    """White noise of deviation s: its highest octave keeps s times the root of (1 - k0)² + the other taps' squares."""
    torch.manual_seed(0)
    grain = 0.1 * torch.randn(1, 3, 256, 256)
    line = torch.tensor([1, 4, 6, 4, 1]) / 16
    kernel = -line[:, None] * line
    kernel[2, 2] += 1
    top = 0.1 * (1 - share) * kernel.square().sum().sqrt()
    assert 0.9 * top < detail_distance(grain, share * grain) < 1.3 * top

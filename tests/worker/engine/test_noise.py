import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.noise import initial_noise


@given(
    st.integers(0, 2**63 - 1), st.integers(0, 90), st.integers(0, 90), st.integers(1, 80), st.integers(1, 80)
)
def test_a_crop_of_the_plane_starts_from_the_same_noise(
    seed: int, top: int, left: int, height: int, width: int
) -> None:
    plane = initial_noise(seed, 2, 170, 170)
    crop = initial_noise(seed, 2, height, width, top, left)
    assert torch.equal(crop, plane[:, top : top + height, left : left + width])


def test_noise_is_standard_normal_and_blocks_differ() -> None:
    noise = initial_noise(3, 4, 256, 256)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert not torch.equal(noise[:, :64, :64], noise[:, 64:128, :64])


def test_another_seed_is_another_noise() -> None:
    assert not torch.equal(initial_noise(0, 1, 8, 8), initial_noise(2**63 - 1, 1, 8, 8))

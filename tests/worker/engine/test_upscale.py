import numpy as np
import pytest
import pyvips
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad

from worker.engine.canvas import Plane, Rectangle
from worker.engine.resample import BICUBIC, BILINEAR, enlarge
from worker.engine.upscale import augment
from worker.scaling import scale_to


@pytest.fixture
def source() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(1, 20, 28)


def test_any_part_equals_the_whole(source: torch.Tensor) -> None:
    for wrap in ((False, False), (True, True)):
        canvas = Plane(33, 50, wrap)
        whole = enlarge(source, canvas, canvas.whole)
        part = Rectangle(7, 11, 9, 31)
        torch.testing.assert_close(enlarge(source, canvas, part), part.slice(whole), rtol=0, atol=1e-6)


def test_beyond_the_edge_of_a_ring_lies_its_other_side(source: torch.Tensor) -> None:
    torus = Plane(40, 56, (True, True))
    whole = enlarge(source, torus, torus.whole)
    over = Rectangle(-6, 50, 20, 20)
    rows, columns = torch.arange(-6, 14) % 40, torch.arange(50, 70) % 56
    torch.testing.assert_close(enlarge(source, torus, over), whole[:, rows][:, :, columns], rtol=0, atol=1e-6)


def test_inside_it_is_what_pillow_makes(source: torch.Tensor) -> None:
    """At the edge Pillow takes fewer pixels, this mirrors them."""
    ours = enlarge(source, Plane(33, 50), Rectangle(0, 0, 33, 50))[0]
    theirs = Image.fromarray(source[0].numpy()).resize((50, 33), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(ours[6:-6, 6:-6], np.asarray(theirs)[6:-6, 6:-6], atol=1e-5)


def test_a_flat_picture_stays_flat() -> None:
    flat = torch.full((3, 8, 8), 0.25)
    part = Rectangle(0, 0, 15, 13)
    torch.testing.assert_close(
        enlarge(flat, Plane(15, 13, (False, True)), part), torch.full((3, 15, 13), 0.25)
    )


def test_inside_bicubic_is_what_libvips_makes(source: torch.Tensor) -> None:
    ours = enlarge(source, Plane(80, 168), Rectangle(0, 0, 80, 168), BICUBIC)[0]
    theirs = scale_to(pyvips.Image.new_from_array(source[0].numpy()), 168, 80).numpy()
    np.testing.assert_allclose(
        ours[8:-8, 8:-8], theirs[8:-8, 8:-8], atol=0.02
    )  # it has kernels for 64 places a pixel


@pytest.mark.parametrize("size", [(40, 56), (80, 112), (33, 50), (20, 61)])
def test_bilinear_is_what_pytorch_makes(source: torch.Tensor, size: tuple[int, int]) -> None:
    canvas = Plane(*size)
    theirs = interpolate(source[None], size=size, mode="bilinear")[0]
    torch.testing.assert_close(enlarge(source, canvas, canvas.whole, BILINEAR), theirs, rtol=0, atol=1e-5)


def test_bilinear_goes_round_a_ring(source: torch.Tensor) -> None:
    torus = Plane(80, 112, (True, True))
    theirs = interpolate(pad(source[None], (2, 2, 2, 2), mode="circular"), scale_factor=4, mode="bilinear")[0]
    ours = enlarge(source, torus, torus.whole, BILINEAR)
    torch.testing.assert_close(ours, theirs[:, 8:-8, 8:-8], rtol=0, atol=1e-5)


def test_the_noise_of_augmentation_is_white_and_as_strong_as_it_says() -> None:
    noise = augment(torch.zeros(4, 128, 128), 0.5, seed=3, level=2)
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    beside = (noise[..., 1:] * noise[..., :-1]).mean()
    assert abs(beside.item()) < 0.01 * 0.25
    assert not augment(torch.zeros(4, 128, 128), 0.0, seed=3, level=2).any()

"""What the mark survives, that it cannot be seen, and that nothing else is taken for it. Real pictures: benchmarks/provenance.py."""

from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from provenance.detection import LEAST_SCORE, score_watermark
from provenance.errors import UnreadableFileError
from provenance.pattern import PERIOD_PX
from provenance.watermark import add_watermark

SIDE = 640


def draw_clouds(slope: float, contrast: float, side: int = SIDE) -> np.ndarray:
    """(h, w, 3), uint8: noise whose amplitude falls with frequency, as in photographs (D. J. Field, 1987, slope 1)."""
    rng, steps = np.random.default_rng(5), np.fft.fftfreq(side)
    radius = np.maximum(np.hypot(steps[:, None], steps[None, :]), 1 / side)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) / radius**slope).real
    grey = 128 + contrast * noise / noise.std()
    return np.clip(np.stack([grey, grey * 0.9, grey * 0.8], -1), 0, 255).astype(np.uint8)


def mark(pixels: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
    image = pyvips.Image.new_from_array(
        pixels, interpretation="srgb" if pixels.dtype == np.uint8 else "rgb16"
    )
    return add_watermark(image, None if share is None else pyvips.Image.new_from_array(share)).numpy()


@pytest.mark.parametrize(("slope", "contrast"), [(1.0, 45.0), (2.0, 40.0), (0.5, 30.0)])
def test_it_survives_jpeg_halving_and_cropping_and_cannot_be_seen(
    tmp_path: Path, slope: float, contrast: float
) -> None:
    plain = draw_clouds(slope, contrast)
    marked = mark(plain)
    error = np.mean((marked.astype(float) - plain) ** 2)
    assert 10 * np.log10(255**2 / error) > 40
    whole, half = (
        Image.fromarray(marked),
        Image.fromarray(marked).resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS),
    )
    files = {"whole.png": whole, "whole.jpg": whole, "half.png": half, "half.jpg": half}
    files["part.jpg"] = whole.crop((101, 57, 700, 650))
    for name, image in files.items():
        image.save(tmp_path / name, quality=80)
        assert score_watermark(tmp_path / name) >= LEAST_SCORE, name


@pytest.mark.parametrize("kind", ["clouds", "black", "repeated", "tiny"])
def test_it_is_not_found_where_it_is_not(tmp_path: Path, kind: str) -> None:
    """Also not in what has the pattern's period, as seamless textures may."""
    pictures = {
        "clouds": draw_clouds(1.0, 45.0),
        "black": np.zeros((SIDE, SIDE, 3), np.uint8),
        "repeated": np.tile(draw_clouds(1.0, 45.0, PERIOD_PX), (3, 3, 1)),
        "tiny": draw_clouds(1.0, 45.0, 40),
    }
    Image.fromarray(pictures[kind]).save(tmp_path / "plain.png")
    assert score_watermark(tmp_path / "plain.png") < LEAST_SCORE


def test_pictures_that_were_marked_by_the_first_version_are_found() -> None:
    """The pattern may never change. The file is `mark(draw_clouds(2.0, 40.0, 384))`, as JPEG 60."""
    assert score_watermark(Path(__file__).with_name("marked.jpg")) >= LEAST_SCORE


def test_it_is_as_strong_in_sixteen_bits() -> None:
    plain = draw_clouds(1.0, 45.0)
    deep = mark(plain.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - mark(plain)).max() <= 1


def test_pixels_that_stay_get_none_of_it() -> None:
    plain, share = draw_clouds(1.0, 45.0), np.zeros((SIDE, SIDE))
    share[100:300, 200:500] = 1
    marked = mark(plain, share)
    assert np.array_equal(marked[share == 0], plain[share == 0])
    assert np.array_equal(marked[share == 1], mark(plain)[share == 1])


def test_a_file_that_cannot_be_decoded_says_so(tmp_path: Path) -> None:
    Image.fromarray(draw_clouds(1.0, 45.0)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:40])
    with pytest.raises(UnreadableFileError, match="cannot be decoded"):
        score_watermark(tmp_path / "cut.png")

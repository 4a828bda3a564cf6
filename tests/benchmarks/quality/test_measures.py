"""The measures of pictures, on pictures whose figures are known beforehand."""

from math import pi, sqrt

import pytest
import torch
from torch import Tensor

from benchmarks.quality.measures import (
    blur,
    cut_cells,
    find_differences,
    find_error,
    find_nearest,
    measure_bands,
    measure_seam,
    measure_texture,
)


def make_noise(side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)


def test_white_noise_has_energy_in_proportion_to_the_area_of_a_band() -> None:
    low, high, everything = measure_bands(make_noise(512)[None], (1 / 8, 1 / 4, 0))
    assert float(low / everything) == pytest.approx(1 - pi / 64, rel=0.01)
    assert float(high / everything) == pytest.approx(1 - pi / 16, rel=0.01)


@pytest.mark.parametrize(("cycles", "above"), [(0.05, 0.0), (0.118, 0.0), (0.132, 1.0), (0.4, 1.0)])
def test_a_wave_lies_on_its_side_of_the_cut(cycles: float, above: float) -> None:
    wave = (torch.arange(512) * cycles * 2 * pi).cos().mul(100).add(128).expand(1, 3, 512, 512)
    high, everything = measure_bands(wave, (1 / 8, 0))
    assert float(high / everything) == pytest.approx(above, abs=0.02)


def test_a_slope_is_no_detail() -> None:
    slope = torch.linspace(0, 255, 512).expand(1, 3, 512, 512)
    high, everything = measure_bands(slope, (1 / 8, 0))
    assert float(high / everything) < 1e-6


def test_equal_cells_have_no_spread() -> None:
    texture = measure_texture(make_noise(256).repeat(1, 2, 3))
    assert (texture.tone, texture.contrast, texture.scale) == pytest.approx((0, 0, 0), abs=1e-4)
    # Grey is the mean of three uniform channels; two neighbours differ by a sum of six of them.
    assert texture.mean_contrast == pytest.approx(256 / sqrt(12) / sqrt(3), rel=0.01)


def test_the_spread_of_tone_is_that_of_the_cells() -> None:
    flat = torch.cat([torch.full((3, 256, 256), value, dtype=torch.uint8) for value in (100, 104)], dim=2)
    assert measure_texture(flat).tone == pytest.approx(sqrt(8))


def test_contrast_and_pattern_scale_are_told_apart() -> None:
    pixels = make_noise(256).float() - 128
    stronger = torch.cat([pixels / 2, pixels], dim=2) + 128
    larger = (
        torch.cat([pixels, pixels[:, :128, :128].repeat_interleave(2, 1).repeat_interleave(2, 2)], dim=2)
        + 128
    )
    assert measure_texture(stronger).contrast == pytest.approx(sqrt(2) / 3, rel=0.01)
    assert measure_texture(stronger).scale < 0.01
    assert measure_texture(larger).contrast < 0.02
    assert measure_texture(larger).scale == pytest.approx(sqrt(2) / 3, rel=0.02)


def test_cells_come_row_by_row() -> None:
    image = torch.arange(64).reshape(1, 8, 8)
    assert cut_cells(image, 4)[:, 0, 0, 0].tolist() == [0, 4, 32, 36]


def test_a_repeated_crop_has_no_distance() -> None:
    features = torch.eye(16)
    contrast = torch.ones(16)
    assert find_nearest(features, contrast) == pytest.approx(sqrt(2))
    features[3] = features[0]
    assert find_nearest(features, contrast) == 0


def test_crops_that_touch_or_show_nothing_may_be_alike() -> None:
    features = torch.eye(16)
    features[1] = features[4] = features[5] = features[0]
    features[15] = features[3]
    contrast = torch.ones(16)
    contrast[15] = 0
    assert find_nearest(features, contrast) == pytest.approx(sqrt(2))


def test_noise_has_no_seam() -> None:
    assert measure_seam(find_differences(make_noise(1024)), [256, 512, 896], [0, 200]) == pytest.approx(
        1, abs=0.03
    )


def test_a_step_of_tone_is_a_seam_sharp_and_blurred() -> None:
    image = make_noise(1024).float() / 8
    image[:, 512:] += 40
    sharp = measure_seam(find_differences(image), [512], [])
    blurred = measure_seam(find_differences(blur(image)), [512], [])
    assert sharp is not None
    assert blurred is not None
    assert sharp > 2
    assert blurred > 10


def test_the_join_of_a_wrap_is_the_line_0() -> None:
    slope = torch.arange(1024.0).expand(3, 8, 1024).transpose(1, 2)
    assert measure_seam(find_differences(slope), [0], []) == 1023
    assert measure_seam(find_differences(slope), [512], []) == 1


def test_a_period_of_the_decoder_is_no_seam() -> None:
    image = torch.zeros(3, 8, 1024)
    for start in range(0, 1024, 16):
        image[:, :, start : start + 8] = 100
    assert measure_seam(find_differences(image), [], [256, 512]) == 1


def test_what_changes_over_a_picture_is_no_seam() -> None:
    fading = make_noise(1024).float() * torch.linspace(0, 1, 1024)[:, None]
    assert measure_seam(find_differences(fading), [256, 512, 768], []) == pytest.approx(1, abs=0.03)


def test_a_picture_without_lines_has_no_seam_ratio() -> None:
    assert measure_seam(find_differences(make_noise(128)), [], []) is None


def test_leaving_out_gives_the_standard_error_of_a_mean() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 7.0])
    left_out = [float((values.sum() - value) / 3) for value in values]
    assert find_error(left_out) == pytest.approx(float(values.std()) / 2)

"""Colours that are corrected once for a whole picture, against numpy on the whole picture."""

from collections.abc import Iterator

import numpy as np
import pytest

from worker.color_sums import ColorSums, Levels, count_colors, fit_colors, recolor
from worker.engine.plan import BitDepth

SIZE = 210, 333


def photo(bit_depth: BitDepth, size: tuple[int, int] = SIZE, seed: int = 0) -> Levels:
    """Broad shapes under noise, and some black and white."""
    down, right = np.mgrid[0 : size[0], 0 : size[1]]
    broad = np.stack([np.sin(down / 31 + each) + np.cos(right / 47 - each) for each in range(3)], -1)
    noise = np.random.default_rng(seed).normal(0, 0.2, (*size, 3))
    levels = np.clip(0.5 + 0.22 * broad + noise, 0, 1) * (2**bit_depth - 1)
    return levels.round().astype(f"uint{bit_depth}")


def strips(image: Levels, height: int) -> Iterator[tuple[int, Levels]]:
    for top in range(0, len(image), height):
        yield top, image[top : top + height]


def count(image: Levels, bit_depth: BitDepth, height: int = 100) -> ColorSums:
    return count_colors(strips(image, height), image.shape[:2], bit_depth)


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_sums_are_those_of_the_whole_picture(bit_depth: BitDepth) -> None:
    image = photo(bit_depth)
    sums, most = count(image, bit_depth), 2**bit_depth - 1
    assert np.allclose(sums.means, image.mean((0, 1)) / most)
    rows, columns = (
        np.arange(length) * cells // length for length, cells in zip(SIZE, (40, 64), strict=True)
    )
    cells = [
        [image[rows == row][:, columns == column].mean((0, 1)) for column in range(64)] for row in range(40)
    ]
    assert np.allclose(sums.deviations, np.std(cells, (0, 1)) / most)


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("drift", [(1.0, 0.0), (0.9, 0.1), (1.1, -0.12), (0.5, 0.5), (0.0, 0.3)])
def test_a_picture_gets_its_sources_mean_however_far_it_has_drifted(
    bit_depth: BitDepth, drift: tuple[float, float]
) -> None:
    """Also where much of it is cut off at white, and where it has one colour only."""
    source, most = photo(bit_depth, (105, 167)), 2**bit_depth - 1
    large = photo(bit_depth, seed=1) * drift[0] + drift[1] * most
    made = large.round().clip(0, most).astype(source.dtype)
    colors = fit_colors(count(made, bit_depth), count(source, bit_depth))
    corrected = recolor(made, colors, bit_depth)
    error = corrected.mean((0, 1)) - source.mean((0, 1))
    assert np.abs(error).max() <= 0.5 * (1 if drift[0] == 0 else most / 255)


def test_the_contrast_of_broad_shapes_is_the_sources_and_detail_does_not_count() -> None:
    source = photo(8, (105, 167))
    made = source.repeat(2, 0).repeat(2, 1) * 0.87 + 20
    made[::2, ::2], made[::2, 1::2] = made[::2, ::2] - 15, made[::2, 1::2] + 15  # gone in every mean
    made = made.round().clip(0, 255).astype(np.uint8)
    wanted = count(source, 8)
    corrected = recolor(made, fit_colors(count(made, 8), wanted), 8)
    before, after = (np.abs(count(each, 8).deviations / wanted.deviations - 1) for each in (made, corrected))
    assert after.max() < 0.03 < 0.1 < before.min()


@pytest.mark.parametrize("height", [1, 64, 97, 210])
def test_the_correction_does_not_depend_on_the_strips(height: int) -> None:
    source = count(photo(8, (105, 167)), 8)
    image = photo(8, seed=1)
    assert fit_colors(count(image, 8, height), source) == fit_colors(count(image, 8), source)

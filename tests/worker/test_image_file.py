"""Rows on disk."""

from pathlib import Path

import numpy as np
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from worker.image_file import ImageFile


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 70))
def test_bands_of_any_height_make_the_picture(height: int, width: int, band: int) -> None:
    import tempfile

    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.tif"
        with ImageFile(path, height, width) as image:
            for top in range(0, height, band):
                image.write(top, pixels[top : top + band])
        assert (tifffile.imread(path) == pixels).all()
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff


def test_a_second_attempt_starts_on_a_clean_file(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    with ImageFile(path, 40, 40) as image:
        image.write(0, np.full((40, 40, 3), 9, np.uint8))
    with ImageFile(path, 20, 30) as image:
        image.write(0, np.zeros((20, 30, 3), np.uint8))
    assert tifffile.imread(path).shape == (20, 30, 3)
    assert not tifffile.imread(path).any()

"""What is enlarged, and what the result is held to."""

from pathlib import Path

import pytest
import torch

from benchmarks.quality.derived import save_image
from benchmarks.quality.enhance import measure_colour, measure_reduced, read_photograph


def test_the_middle_of_a_photograph_is_reduced_by_area(tmp_path: Path) -> None:
    image = (torch.arange(300)[:, None] // 2 + torch.arange(700) // 10).expand(3, -1, -1).to(torch.uint8)
    save_image(image, path := tmp_path / "photo.png")
    found = read_photograph(path, 512)
    assert found.original.equal(image[:, 22:278, 94:606])
    means = found.original.reshape(3, 64, 4, 128, 4).double().mean((2, 4))
    assert (found.source - means).abs().max() <= 0.5


def test_a_result_is_held_to_its_source(tmp_path: Path) -> None:
    save_image(torch.full((3, 128, 128), 100, dtype=torch.uint8), path := tmp_path / "grey.png")
    grey = read_photograph(path, 128)
    tinted = grey.original.clone()
    tinted[2] += 5
    assert measure_colour(grey, tinted) == 5
    assert measure_reduced(grey, tinted) == pytest.approx(
        10 * torch.tensor(255**2 * 3 / 25).log10().item(), abs=1e-3
    )

"""A decoded picture that is reduced as it comes, in bands: means of areas."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from worker.engine import upscale
from worker.engine.canvas import Plane
from worker.engine.stitch import Band
from worker.engine.upscale import hold_reduced


@pytest.mark.parametrize("size", [(30, 70), (32, 20), (9, 13), (2, 110)])
def test_what_is_reduced_is_the_mean_of_what_each_pixel_covers(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pixels cut into so many parts that each pixel of the smaller picture has whole ones."""
    picture = torch.randint(0, 256, (64, 140, 3), dtype=torch.uint8)

    def stitch(tiles: Iterator[object], width: int) -> Iterator[Band]:
        yield from (Band(top, picture[top : top + 10]) for top in range(0, 64, 10))

    monkeypatch.setattr(upscale, "stitch", stitch)
    monkeypatch.setattr(upscale, "_PIECE", 50)
    found = finish(hold_reduced(iter(()), Plane(64, 140), Plane(*size), torch.device("cpu")))
    parts = picture.permute(2, 0, 1).double()
    for axis, side in ((1, size[0]), (2, size[1])):
        parts = parts.repeat_interleave(side, axis).unflatten(axis, (side, -1)).mean(axis + 1)
    torch.testing.assert_close(found, parts.float(), rtol=0, atol=1e-3)


def finish(reading: Iterator[object]) -> Tensor:
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value

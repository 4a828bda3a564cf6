"""Operations that enlarge and that shrink, on tiles, against the same operations on the whole picture."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from worker.engine.canvas import Plane, Rectangle
from worker.engine.plan import DecodePlan
from worker.engine.ranks import SingleRank
from worker.engine.vae.executor import Heartbeat, MomentsPooled, TiledRun, TileFinished, lay_tiles, run_tiles
from worker.engine.vae.operations import (
    Decoder,
    Fork,
    Join,
    Local,
    Normalize,
    Operation,
    Shrink,
    halo_of,
    scale_of,
    shrink_of,
    with_trims,
)
from worker.engine.vae.whole import cut

KINDS = ("convolve", "enlarge", "shrink", "add", "normalize")


def make(kind: str) -> list[Operation]:
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(len(kind))) / 6
    convolve = partial(F.conv2d, weight=weight, padding=1)
    match kind:
        case "convolve":
            return [Local(convolve, reach=1)]
        case "enlarge":
            return [Local(lambda value: convolve(F.interpolate(value, scale_factor=2)), reach=1, scale=2)]
        case "shrink":
            return [Shrink(partial(convolve, stride=2))]
        case "add":
            return [Fork(nn.Identity()), Local(convolve, reach=1), Join()]
        case _:
            return [Normalize(nn.GroupNorm(2, 4))]


def run_whole_by_torch(operations: list[Operation], value: Tensor) -> Tensor:
    aside = value
    for operation in operations:
        match operation:
            case Local() | Shrink():
                value = operation.apply(value)
            case Normalize(norm):
                value = norm(value)
            case Fork():
                aside = value
            case _:
                value = value + aside
    return value


@settings(max_examples=30)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=7), st.booleans())
@torch.no_grad()
def test_tiles_equal_the_whole_in_any_order_of_operations(kinds: list[str], at_joins: bool) -> None:
    operations = [operation for kind in kinds for operation in make(kind)]
    unit, scale = shrink_of(operations), scale_of(operations)
    canvas = Plane(5 * unit, 7 * unit)
    picture = torch.randn(1, 4, *canvas.size, generator=torch.Generator().manual_seed(1))
    trimmed = list(with_trims(operations, at_joins=at_joins))
    halo = halo_of(trimmed)
    tiled = TiledRun(
        Decoder(trimmed, ()),
        trimmed,
        lay_tiles(canvas, 2 * unit),
        lambda tile: cut(picture, canvas, tile, halo),
        exact=True,
    )
    whole = run_whole_by_torch(operations, picture)[0]
    joined = torch.full((4, 5 * scale, 7 * scale), torch.nan)
    for event in run_tiles(tiled, DecodePlan(memory_bytes=1), SingleRank()):
        if isinstance(event, TileFinished):
            event.place.slice(joined).copy_(event.value)
    torch.testing.assert_close(joined, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [None, [5, 6, 7]])
def test_every_tile_gives_a_sign_of_life_each_time_that_it_is_computed(wanted: list[int] | None) -> None:
    picture, operations = torch.randn(1, 4, 8, 8), [*make("normalize"), *make("convolve")]
    tiles = lay_tiles(Plane(8, 8), 2)
    tiled = TiledRun(
        Decoder(operations, ()),
        operations,
        tiles,
        lambda tile: cut(picture, Plane(8, 8), tile, 1),
        wanted=wanted,
    )
    events = [type(event) for event in run_tiles(tiled, DecodePlan(), SingleRank())]
    assert events[:17] == [Heartbeat] * 16 + [MomentsPooled]
    assert events.count(TileFinished) == events[17:].count(Heartbeat) == len(wanted or tiles)


def test_tiles_lie_side_by_side() -> None:
    covered = torch.zeros(5, 7)
    for tile in lay_tiles(Plane(5, 7), 3):
        tile.slice(covered).add_(1)
    assert covered.eq(1).all()
    assert lay_tiles(Plane(5, 7), 3)[-1] == Rectangle(3, 6, 2, 1)

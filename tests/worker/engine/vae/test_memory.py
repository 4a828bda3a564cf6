"""What a decode holds on its way, for a small decoder and for one of SDXL's true size."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from worker.adapters.autoencoders.decoder import flatten_decoder
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.engine.canvas import Rectangle
from worker.engine.plan import DecodePlan
from worker.engine.vae.decode import predict_held
from worker.engine.vae.memory import Site, Tail, choose_holds, choose_split, find_stops, survey
from worker.engine.vae.operations import Decoder, halo_of, scale_of

GIB = 1 << 30


@pytest.fixture(scope="module")
def sdxl() -> Decoder:
    """Without weights: only shapes are asked for."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    return flatten_decoder(vae.bfloat16(), LatentScaling(0.18215))


def plan(decoder: Decoder, side: int, memory_bytes: int) -> tuple[list[Site], list[int | None], list[int]]:
    """Sites, holds and stops for a square latent of that side."""
    latent = torch.empty(4, side, side, device="meta")
    split = choose_split(latent, decoder, DecodePlan(memory_bytes=memory_bytes))
    scale = scale_of(decoder.operations[:split])
    size, extent = 64 * scale, side * scale
    tiles = [
        Rectangle(top, left, size, size) for top in range(0, extent, size) for left in range(0, extent, size)
    ]
    state = torch.empty(1, decoder.channels[split - 1], extent, extent, dtype=decoder.dtype, device="meta")
    tail = Tail.of(decoder, split, state)
    sites, stops = survey(tail, tiles), list(find_stops(tail.operations).values())
    return sites, choose_holds(sites, stops, memory_bytes), stops


def largest(sites: list[Site], holds: list[int | None]) -> int:
    return max(sites[hold].size_bytes for hold in holds if hold is not None)


def test_a_site_counts_halo_and_what_is_set_aside(sdxl: Decoder) -> None:
    tail = Tail.of(sdxl, 0, torch.empty(1, 4, 64, 64, dtype=sdxl.dtype, device="meta"))
    sites = survey(tail, [Rectangle(0, 0, 64, 64)])
    assert len(sites) == len(tail.operations) + 1
    numbers = [site.size_bytes // 2 for site in sites]
    assert numbers[-1] == 3 * 512**2  # one tile is all there is: nothing lies around it
    assert 2 * 512 * 64**2 in numbers  # within a residual block
    assert 512 * 64**2 in numbers
    half = survey(tail, [Rectangle(0, 0, 64, 32)])
    assert half[1].size_bytes == 4 * 64 * (32 + halo_of(tail.operations)) * 2


def test_at_8192_all_that_is_held_fits_the_device(sdxl: Decoder) -> None:
    sites, holds, stops = plan(sdxl, 1024, 9 * GIB)
    assert 8 * GIB < largest(sites, holds) <= 9 * GIB
    # At full resolution tiles start in front of what enlarges them, where there is a quarter as much to hold.
    last = max(hold for hold in holds if hold is not None)
    assert last < stops[-7]
    assert sites[last].size_bytes < sites[stops[-7]].size_bytes / 3


def test_at_4096_less_is_held_than_may_be(sdxl: Decoder) -> None:
    sites, holds, _ = plan(sdxl, 512, 9 * GIB)
    assert 4 * GIB < largest(sites, holds) < 5 * GIB


def test_what_is_held_is_told_before(sdxl: Decoder) -> None:
    """2048² is decoded as a whole, 4096² half of it, 8192² in tiles as soon as its attention is over."""
    small, medium, large = (
        predict_held(
            torch.empty(4, side, side, device="meta"), sdxl, DecodePlan(memory_bytes=9 * GIB, recompute=True)
        )
        for side in (256, 512, 1024)
    )
    assert small == 8 * GIB
    sites, holds, _ = plan(sdxl, 512, 9 * GIB)
    assert medium == largest(sites, holds) + GIB
    assert medium < small < large < 10 * GIB


def test_with_less_memory_less_is_held_on_the_device_and_more_is_computed() -> None:
    sites = [Site(size * GIB, 0.05) for size in (0, 40, 1, 60, 60)]
    assert choose_holds(sites, [1, 2, 3, 4], 100 * GIB) == [None, 2, None, None]
    assert choose_holds(sites, [1, 2, 3, 4], 0) == [None, None, None, None]


def test_where_computing_is_dear_it_is_moved() -> None:
    sites = [Site(0, 0.0), Site(GIB, 100.0), Site(GIB, 100.0)]
    assert choose_holds(sites, [1, 2], 0) == [1, 2]

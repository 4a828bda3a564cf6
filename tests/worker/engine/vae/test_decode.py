from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_models import tiny_autoencoder, tiny_vae
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.autoencoders.decoder import flatten_decoder
from worker.adapters.autoencoders.scaling import LatentScaling
from worker.engine.canvas import Plane, Rectangle
from worker.engine.errors import MomentsError
from worker.engine.plan import DecodeMode, DecodePlan
from worker.engine.ranks import Group
from worker.engine.stitch import Band, stitch
from worker.engine.vae.activation import Activation, Held
from worker.engine.vae.decode import DecodedTile, Decoding, decode
from worker.engine.vae.executor import MomentsPooled
from worker.engine.vae.memory import choose_mode, choose_split
from worker.engine.vae.operations import Attend, Decoder, Normalize, halo_of, with_fewer_keys
from worker.engine.warned import Warned

ONE_LEVEL = 1 / 127.5  # of 255, in the decoder's range [-1, 1]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return flatten_decoder(tiny_vae(), LatentScaling(0.18215))


def paint(
    latent: torch.Tensor,
    decoder: Decoder,
    plan: DecodePlan,
    wrap: tuple[bool, bool] = (False, False),
    group: Group | None = None,
) -> torch.Tensor:
    image = torch.full((3, latent.shape[1] * decoder.scale, latent.shape[2] * decoder.scale), torch.nan)
    for tile in list_tiles(decode(latent, decoder, Plane(*latent.shape[1:], wrap), plan, group)):
        tile.place.slice(image).copy_(tile.image)
    return image


def list_tiles(events: Iterable[Decoding]) -> list[DecodedTile]:
    return [event for event in events if isinstance(event, DecodedTile)]


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("memory_bytes", [1, 600_000, 1 << 30])
def test_exact_equals_the_autoencoders_own_decode(attention: bool, memory_bytes: int) -> None:
    vae = tiny_vae(attention=attention)
    latent = torch.randn(4, 37, 50)
    with torch.inference_mode():
        whole = vae.decode(latent[None] / vae.config.scaling_factor).sample[0]
    tiled = paint(
        latent,
        flatten_decoder(vae, LatentScaling(vae.config.scaling_factor)),
        DecodePlan(13, "exact", memory_bytes),
    )
    assert (tiled - whole).abs().max() < 0.01 * ONE_LEVEL


def test_each_memory_gives_another_split(decoder: Decoder) -> None:
    latent = torch.randn(4, 37, 50)
    splits = [choose_split(latent, decoder, DecodePlan(13, "exact", size)) for size in (1, 600_000, 1 << 30)]
    assert splits[0] < splits[1] < splits[2] == len(decoder.operations)


def test_a_decoder_without_statistics_streams_and_is_exact() -> None:
    vae = tiny_autoencoder()
    latent = torch.randn(4, 40, 33)
    with torch.inference_mode():
        whole = vae.decode(latent[None]).sample[0]
    tiled = paint(latent, flatten_decoder(vae, LatentScaling()), DecodePlan(16, "exact"))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@settings(max_examples=8)
@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([(True, True), (False, True), (True, False)]))
def test_wrapped_decode_of_a_rolled_latent_is_the_rolled_decode(
    down: int, right: int, wrap: tuple[bool, bool]
) -> None:
    decoder = flatten_decoder(tiny_vae(), LatentScaling(0.18215))
    latent = torch.randn(4, 24, 28)
    shift = (down * wrap[0], right * wrap[1])
    plan = DecodePlan(9, "exact", 1)
    rolled = paint(latent.roll(shift, (1, 2)), decoder, plan, wrap)
    expected = paint(latent, decoder, plan, wrap).roll(
        (shift[0] * decoder.scale, shift[1] * decoder.scale), (1, 2)
    )
    torch.testing.assert_close(rolled, expected, rtol=0, atol=1e-4)


def test_bounded_mode_is_close_and_has_no_seam(decoder: Decoder) -> None:
    latent = torch.randn(4, 96, 96, generator=torch.Generator().manual_seed(1))
    exact = paint(latent, decoder, DecodePlan(8, "exact", 1))
    bounded = paint(latent, decoder, DecodePlan(8, "bounded", 1))
    assert 0 < (exact - bounded).abs().mean() < 2 * ONE_LEVEL
    across = (bounded[:, :, 32::32] - bounded[:, :, 31:-1:32]).abs().mean()
    beside = (bounded[:, :, 48::32] - bounded[:, :, 47:-1:32]).abs().mean()
    assert 0.8 < across / beside < 1.25


def test_a_large_bounded_canvas_attends_to_means_of_neighbours() -> None:
    """What that costs is a little of what attention does at all, where neighbours are alike; exact mode is as ever."""
    vae = tiny_vae()
    vae.decoder.mid_block.attentions[0].to_q.weight.data *= 4  # sharper than chance makes it
    decoder, latent = flatten_decoder(vae, LatentScaling(0.18215)), torch.randn(1, 4, 8, 8)
    latent = F.interpolate(latent, scale_factor=4, mode="bicubic")[0]
    exact, bounded = (
        paint(latent, decoder, DecodePlan(64, mode, most_keys=256)) for mode in ("exact", "bounded")
    )
    blind = [
        replace(each, apply=lambda source, _: torch.zeros_like(source)) if isinstance(each, Attend) else each
        for each in decoder.operations
    ]
    without = paint(latent, replace(decoder, operations=blind), DecodePlan(64, "exact"))
    assert torch.equal(exact, paint(latent, decoder, DecodePlan(64, "exact")))
    assert 0 < (bounded - exact).abs().mean() < 0.2 * (without - exact).abs().mean()


def test_means_of_equal_neighbours_answer_as_each_of_them() -> None:
    decoder = flatten_decoder(tiny_vae(), LatentScaling())
    (attend,) = (each for each in decoder.operations if isinstance(each, Attend))
    (fewer,) = with_fewer_keys([attend], 16)
    assert isinstance(fewer, Attend)
    channels = decoder.channels[decoder.operations.index(attend)]
    source, context = torch.randn(1, channels, 3, 5), torch.randn(1, channels, 4, 4)
    repeated = context.repeat_interleave(3, 2).repeat_interleave(3, 3)
    with torch.inference_mode():
        expected, found = attend.apply(source, context), fewer.apply(source, repeated)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", ["exact", "bounded"])
@pytest.mark.parametrize("memory_bytes", [1, 300_000, 1 << 30])
@pytest.mark.parametrize("attention", [True, False])
def test_kept_moments_give_the_same_bytes_of_the_whole_and_of_a_part(
    mode: DecodeMode, memory_bytes: int, attention: bool
) -> None:
    latent, plan = torch.randn(4, 50, 37), DecodePlan(8, mode, memory_bytes)
    decoder = flatten_decoder(tiny_vae(attention=attention), LatentScaling(0.18215))
    events = list(decode(latent, decoder, Plane(*latent.shape[1:], (True, True)), plan))
    (pooled,) = (event for event in events if isinstance(event, MomentsPooled))
    assert len(pooled.moments) == sum(isinstance(each, Normalize) for each in decoder.operations)
    kept = [tensor.clone().cpu() for tensor in pooled.moments]
    first = {tile.place: tile.image for tile in list_tiles(events)}

    def decode_again(part: Rectangle | None) -> dict[Rectangle, torch.Tensor]:
        again = list_tiles(
            decode(latent, decoder, Plane(*latent.shape[1:], (True, True)), plan, moments=kept, part=part)
        )
        assert all(torch.equal(tile.image, first[tile.place]) for tile in again)
        return {tile.place: tile.image for tile in again}

    assert list(decode_again(None)) == list(first)
    assert {(place.top, place.left) for place in decode_again(Rectangle(9, 12, 8, 4))} == {
        (top * decoder.scale, 8 * decoder.scale) for top in (8, 16)
    }
    assert {(place.top, place.left) for place in decode_again(Rectangle(48, 0, 4, 1))} == {
        (top * decoder.scale, 0) for top in (0, 48)
    }


def test_a_part_goes_by_the_moments_of_the_canvas_that_they_come_from(decoder: Decoder) -> None:
    """Another latent there changes what lies in reach of it, and no tone elsewhere."""
    latent, plan = torch.randn(4, 40, 40), DecodePlan(8, "exact", 1)
    decoder = flatten_decoder(tiny_vae(attention=False), LatentScaling(0.18215))
    events = list(decode(latent, decoder, Plane(*latent.shape[1:]), plan))
    (pooled,) = (event for event in events if isinstance(event, MomentsPooled))
    first = {tile.place: tile.image for tile in list_tiles(events)}
    changed = latent.clone()
    changed[:, 34:38, 34:38] += 3
    moments = pooled.moments
    again = list_tiles(
        decode(changed, decoder, Plane(40, 40), plan, moments=moments, part=Rectangle(0, 0, 9, 9))
    )
    assert len(again) == 4
    for tile in again:
        torch.testing.assert_close(tile.image, first[tile.place], rtol=0, atol=1e-6)


def test_moments_of_another_decoder_are_refused(decoder: Decoder) -> None:
    latent, plan = torch.randn(4, 10, 10), DecodePlan(8)
    with pytest.raises(MomentsError, match=r"shapes \[\(3, 4\)\] were given"):
        list(decode(latent, decoder, Plane(10, 10), plan, moments=[torch.zeros(3, 4)]))


def test_auto_is_exact_until_too_much_must_be_held(decoder: Decoder) -> None:
    latent = torch.randn(4, 64, 64)
    assert choose_mode(latent, decoder, DecodePlan(16, "auto", 1 << 30)) == "exact"
    assert choose_mode(latent, decoder, DecodePlan(16, "auto", 1 << 10)) == "bounded"


def test_bands_come_from_the_top_without_a_gap(decoder: Decoder) -> None:
    latent = torch.randn(4, 20, 12)
    tiles = list_tiles(decode(latent, decoder, Plane(*latent.shape[1:]), DecodePlan(8, "exact", 1)))
    bands = [event for event in stitch(iter(tiles), 12 * decoder.scale) if isinstance(event, Band)]
    assert [band.top for band in bands] == [0, 32, 64]
    picture = torch.cat([band.rows for band in bands])
    assert picture.shape == (80, 48, 3)
    assert picture.dtype == torch.uint8
    expected = (tiles[3].image * 127.5 + 127.5).round().clamp(0, 255)
    assert torch.equal(picture[32:64, 32:48].permute(2, 0, 1).float(), expected)


def test_halo_counts_reach_through_every_scale() -> None:
    operations = flatten_decoder(tiny_autoencoder(), LatentScaling()).operations
    latent = torch.randn(4, 64, 64)
    disturbed = latent.clone()
    disturbed[:, 32, 32] += 5
    plain, other = (
        paint(x, Decoder(operations, [8] * len(operations)), DecodePlan(64)) for x in (latent, disturbed)
    )
    rows = ((plain - other).abs().amax(dim=(0, 2)) > 0).nonzero()
    reach = max(32 * 8 - int(rows.min()), int(rows.max()) - 32 * 8 - 7)
    assert reach <= halo_of(operations) * 8


def test_what_does_not_fit_is_spilled_and_comes_back(tmp_path: Path) -> None:
    held = Held(300, 0, tmp_path)
    kept = [
        Activation(torch.randn(1, 2, 5, 5), Rectangle(1, 1, 3, 3), torch.randn(1, 2, 5, 5)) for _ in range(3)
    ]
    for index, activation in enumerate(kept):
        held.put(index, index + 7, activation)
    assert len(list(tmp_path.iterdir())) == 3
    for index, activation in enumerate(kept):
        position, back = held.read(index) or (0, activation)
        assert position == index + 7
        assert torch.equal(back.value, activation.value)
        assert back.core == activation.core
        held.drop(index)
    assert not list(tmp_path.iterdir())


def test_a_value_that_is_also_set_aside_is_held_once(tmp_path: Path) -> None:
    value = torch.randn(1, 2, 5, 5)
    activation = Activation(value, Rectangle(0, 0, 5, 5), value)
    assert activation.size_bytes == value.nbytes
    held = Held(200, 0, tmp_path)
    held.put(0, 1, activation)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["exact", "bounded"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_bytes_do_not_depend_on_how_decode_tiles_are_shared_out(
    decoder: Decoder, mode: DecodeMode, ranks: int
) -> None:
    """7 x 5 tiles, the last ones narrower and lower: no rank count divides a row."""
    latent = torch.randn(4, 50, 37)
    for memory_bytes in (1, 1 << 30):
        plan = DecodePlan(8, mode, memory_bytes, recompute=True)
        alone = paint(latent, decoder, plan)
        with ThreadPoolExecutor(ranks) as pool:
            pictures = pool.map(
                lambda group, plan=plan: paint(latent, decoder, plan, group=group), thread_groups(ranks)
            )
            assert all(torch.equal(alone, picture) for picture in pictures)


def test_computing_again_gives_the_bytes_of_holding(decoder: Decoder) -> None:
    latent = torch.randn(4, 30, 40)
    held, computed = (
        paint(latent, decoder, DecodePlan(9, "exact", 1, recompute=again)) for again in (False, True)
    )
    assert torch.equal(held, computed)


@pytest.fixture
def overflowing() -> AutoencoderKL:
    """In float16 its last level overflows where the latent is large, and only there."""
    vae = tiny_vae(attention=False)
    vae.decoder.up_blocks[2].resnets[0].conv2.weight.data *= 16_000
    return vae.half()


@pytest.mark.parametrize("mode", ["exact", "bounded"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_tile_that_overflows_is_decoded_in_float32(
    overflowing: AutoencoderKL, mode: DecodeMode, ranks: int
) -> None:
    latent = torch.randn(4, 24, 32, generator=torch.Generator().manual_seed(5)) * 0.2
    latent[:, 11:13, 19:21] *= 200

    def decode_all(group: Group) -> list[DecodedTile]:
        decoder = flatten_decoder(deepcopy(overflowing), LatentScaling(0.18215))
        return list_tiles(decode(latent, decoder, Plane(*latent.shape[1:]), DecodePlan(8, mode, 1), group))

    with ThreadPoolExecutor(ranks) as pool:
        tiles, *_ = list(pool.map(decode_all, thread_groups(ranks)))
    assert {(tile.place.top, tile.place.left) for tile in tiles if tile.widened} == {(32, 64)}
    assert all(tile.image.isfinite().all() for tile in tiles)
    warnings = [event for event in stitch(iter(tiles), 32 * 4) if isinstance(event, Warned)]
    assert [warning.code for warning in warnings] == ["decode_widened"]
    assert "rows 32 to 64, columns 64 to 96 px" in warnings[0].message
    whole = overflowing.float().decode(latent[None] / overflowing.config.scaling_factor).sample[0]
    image = torch.cat([torch.cat([tile.image for tile in tiles[i : i + 4]], -1) for i in (0, 4, 8)], -2)
    spread = whole.std()
    assert (image - whole).abs().mean() < 0.02 * spread

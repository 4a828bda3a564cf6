"""The latent upscaler: what its pairs are, that it begins as the denoiser, and that it learns from what it sees."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training import upscaler_figures
from training.critic import Critic, LatentBackbone, PictureBackbone
from training.dataset import Picture
from training.denoiser import build_denoiser
from training.diffusion import build_noising
from training.latents import PHRASINGS, Captions, decode_latents, encode_pixels
from training.painted import SCALE, PaintedLeads, paint_leads
from training.pairs import SCALES, Pairs, encode_pairs, enlarge
from training.parts import copy_denoiser
from training.progress import Budget
from training.upscaler import (
    FOLDER,
    Conditioned,
    UpscalerLessons,
    UpscalerOptions,
    UpscalerTraining,
    build_upscaler,
    train,
)
from training.upscaler_sharpen import UpscalerSharpening, UpscalerSharpenOptions, sharpen

CPU = torch.device("cpu")


def build_vae() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    )


def tiny_denoiser() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_denoiser(4, 16, (16, 16, 16))


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Picture]:
    def take(side_px: int, **fields: str) -> Picture:
        path = tmp_path / f"{side_px}{''.join(fields.values())}.png"
        pixels = np.random.default_rng(side_px).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return Picture(path, "a hill", "landscape", path.name, tileable=False, **fields)

    return take


def draw_pairs(count: int = 4, side: int = 16) -> Pairs:
    latents, leads = torch.randn(2, count, 4, side, side).unbind()
    return Pairs(
        latents, leads, torch.tensor([2, 3, 4, 2] * (count // 4)), torch.zeros(count, dtype=torch.long)
    )


def build_captions() -> Captions:
    return Captions(torch.randn(PHRASINGS + 1, 8, 16), torch.tensor([True]), ["landscape"])


def build_lessons() -> UpscalerLessons:
    return UpscalerLessons({64: draw_pairs(8), 128: draw_pairs(4)}, build_captions())


def test_a_lead_is_what_the_reduced_picture_has_at_that_place(take: Callable[..., Picture]) -> None:
    """Of a picture that is one window: nothing is cut, so both latents are known."""
    vae, picture = build_vae(), take(192)
    pairs = encode_pairs(vae, [picture], 24, 8, CPU, seed=0)
    assert len(pairs.latents) > 2
    pixels = torch.from_numpy(np.array(Image.open(picture.path))).permute(2, 0, 1)[None] / 127.5 - 1
    for latent, lead, scale in zip(pairs.latents, pairs.leads, pairs.scales.tolist(), strict=True):
        found = [_miss(vae, seen, latent, lead, scale) for seen in (pixels, pixels.flip(3))]
        assert min(found) < 0.02


def _miss(vae: AutoencoderTiny, pixels: Tensor, latent: Tensor, lead: Tensor, scale: int) -> float:
    size = [side // scale for side in pixels.shape[2:]]
    small = functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
    with torch.no_grad():
        wanted = encode_pixels(vae, pixels), encode_pixels(vae, enlarge(small, scale))
    return max(float((a[0] - b.float()).abs().mean()) for a, b in zip(wanted, (latent, lead), strict=True))


def test_windows_are_cut_of_pictures_that_are_large_enough(take: Callable[..., Picture]) -> None:
    pairs = encode_pairs(build_vae(), [take(64), take(256)], 24, 6, CPU, seed=0)
    assert pairs.owners.unique().tolist() == [1]
    assert pairs.latents.shape == pairs.leads.shape == (6, 4, 24, 24)
    assert set(pairs.scales.tolist()) <= set(SCALES)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"split": "train", "license_class": "cc-by-sa"}, True),
        ({"split": "train", "license_class": "gpl"}, False),
        ({"split": "train", "license_class": "lgpl"}, False),
        ({"split": "heldout", "license_class": "pd"}, False),
    ],
)
def test_neither_held_out_pictures_nor_those_of_other_licenses_are_trained_on(
    fields: dict[str, str], allowed: bool, take: Callable[..., Picture]
) -> None:
    assert take(64, **fields).for_training is allowed


def test_a_lead_is_seen_under_noise_of_up_to_so_many_deviations() -> None:
    torch.manual_seed(0)
    pairs = draw_pairs(count=400, side=24)
    spreads = (pairs.disturb(0.3) - pairs.leads).std(dim=(1, 2, 3))
    assert spreads.max() < 0.32
    assert abs(spreads.mean().item() - 0.15) < 0.02


def test_it_begins_as_the_denoiser_whatever_it_sees() -> None:
    denoiser, (noisy, lead) = tiny_denoiser(), torch.randn(2, 1, 4, 16, 16).unbind()
    timestep, text = torch.tensor([500]), torch.randn(1, 8, 16)
    with torch.no_grad():
        wanted = denoiser(noisy, timestep, text, return_dict=False)[0]
        made = Conditioned(build_upscaler(denoiser), lead)(noisy, timestep, text)[0]
    assert torch.allclose(made, wanted, atol=1e-6)


def test_it_learns_to_use_what_it_sees() -> None:
    """Latents that are their leads: the error falls below what noise alone allows."""
    torch.manual_seed(1)
    training = UpscalerTraining(build_upscaler(tiny_denoiser()), UpscalerOptions(), CPU)
    text = torch.zeros(4, 8, 16)
    training.optimizer.param_groups[0]["lr"] = 3e-3
    losses = list[float]()
    for _ in range(60):
        pairs = draw_pairs(side=8)
        losses.append(
            training.step(Pairs(pairs.latents, pairs.latents, pairs.scales, pairs.owners), text).item()
        )
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    seen = training.upscaler.conv_in.weight[:, 4:]
    assert seen.abs().max() > 0.01


def test_what_was_trained_is_written_and_gone_on_with(tmp_path: Path) -> None:
    options, said = UpscalerOptions(batch=4), list[str]()
    first, again = (UpscalerTraining(build_upscaler(tiny_denoiser()), options, CPU) for _ in range(2))
    train(build_lessons(), first, tmp_path, Budget(seconds=1.0), 0, said.append)
    train(build_lessons(), again, tmp_path, Budget(seconds=1.0), 0, said.append)  # its time is over already
    assert all(map(torch.equal, first.upscaler.parameters(), again.upscaler.parameters()))
    written = UNet2DConditionModel.from_pretrained(tmp_path / FOLDER, torch_dtype=torch.float32)
    for half, average in zip(written.parameters(), first.average.values, strict=True):
        assert torch.equal(half, average.half().float())


def test_sharpening_teaches_both_sides_and_writes_them(tmp_path: Path) -> None:
    denoiser = tiny_denoiser()
    critic = Critic([LatentBackbone(copy_denoiser(denoiser), build_noising(CPU))], text_width=16)
    vae, latents = build_vae(), torch.randn(2, 4, 16, 16)
    sharpening = UpscalerSharpening(build_upscaler(denoiser), critic, vae, UpscalerSharpenOptions(), CPU)
    parts = (sharpening.generator, sharpening.critic.heads, sharpening.known)
    before = [[weight.clone() for weight in part.parameters()] for part in parts]
    sizes = UpscalerOptions(batch=4)
    painted = PaintedLeads(latents, torch.zeros(2, dtype=torch.long), vae)
    sharpen(build_lessons(), painted, sharpening, tmp_path, Budget(seconds=1.0), sizes, seed=0)
    moved = [
        not all(map(torch.equal, part.parameters(), old)) for part, old in zip(parts, before, strict=True)
    ]
    assert moved == [True, True, False]
    assert (tmp_path / FOLDER / "diffusion_pytorch_model.safetensors").is_file()


def test_a_window_of_a_painted_lead_is_a_part_of_what_the_whole_one_decodes_to() -> None:
    torch.manual_seed(0)
    vae = build_vae()
    painted = paint_leads(tiny_denoiser(), vae, build_captions(), 1, seed=0)
    windows = painted.draw(1, 64)
    whole, found = decode_latents(vae, painted.latents.float()), windows.pictures[..., 56:72, 56:72]
    misses = functional.conv2d(whole.square(), torch.ones_like(found)) - 2 * functional.conv2d(whole, found)
    assert (misses + found.square().sum()).min() / found.square().sum() < 0.01
    assert windows.leads.shape == (1, 4, 64, 64)
    assert windows.pictures.shape == (1, 3, 8 * 64 // SCALE, 8 * 64 // SCALE)


def test_reduced_pictures_are_seen_at_half_their_size() -> None:
    backbone = PictureBackbone(build_vae(), reduced=True)
    with torch.no_grad():
        maps = backbone(torch.randn(1, 4, 16, 16), torch.zeros(1, 8, 16))
    whole, half = maps[: len(maps) // 2], maps[len(maps) // 2 :]
    assert tuple(each.shape[1] for each in maps) == backbone.channels
    assert [each.shape[2] for each in half[:3]] == [each.shape[2] // 2 for each in whole[:3]]


def test_the_high_band_of_white_noise_is_its_share_of_the_plane() -> None:
    """All frequencies but those in a circle of a quarter of the sampling rate: 1 - π/16 · 4 / 4."""
    torch.manual_seed(0)
    share = upscaler_figures.measure_high_band(torch.randn(4, 3, 256, 256))
    assert share.sub(1 - torch.pi / 16).abs().max() < 0.02

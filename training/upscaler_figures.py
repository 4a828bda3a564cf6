"""What a latent upscaler makes of held-out photographs: how much fine detail, how true to them when reduced."""

from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training.dataset import read_folders
from training.latents import decode_latents, encode_captions
from training.measures import measure_psnr
from training.pairs import encode_pairs
from training.parts import load_denoiser, load_encoders, place
from training.sampling import denoise
from training.upscaler import RECIPE, Conditioned

_NOISE = 0.1  # deviations, on the lead
_BATCH = 8


@torch.no_grad()
def evaluate(
    upscaler: Path, parts: Path, folders: list[Path], out: Path, device: torch.device, count: int = 40
) -> dict[str, float]:
    """Figures of `count` windows of 1024 px, and a sheet of six: real, enlarged alone, made."""
    vae, text, tokenizer = load_encoders(parts, device)
    network = place(load_denoiser(upscaler), device).eval()
    held_out = [picture for picture in read_folders(folders) if picture.held_out]
    pairs = encode_pairs(vae, held_out, 128, count, device, seed=11)
    captions = encode_captions(text, tokenizer, held_out, device, seed=11)
    latents, leads = pairs.latents.float(), pairs.leads.float()
    states = captions.states[pairs.owners * (len(captions.states) // len(held_out))].float()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)).to(device)
    rows = [slice(start, start + _BATCH) for start in range(0, len(latents), _BATCH)]
    made = torch.cat(
        [
            denoise(Conditioned(network, leads[row]), RECIPE, noise[row], states[row], states[:1])
            for row in rows
        ]
    )
    real, enlarged, painted = (
        torch.cat([decode_latents(vae, each[row]) for row in rows]) for each in (latents, leads, made)
    )
    figures = {
        "high band over the autoencoder's": _compare_bands(painted, real),
        "of the enlarged alone": _compare_bands(enlarged, real),
        "psnr of a quarter of the size": _measure_reduced(painted, real),
    }
    print(figures, flush=True)
    _draw(out / "upscaler.jpg", real[:6], enlarged[:6], painted[:6])
    return figures


def _compare_bands(made: Tensor, real: Tensor) -> float:
    """Median over pictures."""
    return (measure_high_band(made) / measure_high_band(real)).median().item()


def measure_high_band(image: Tensor) -> Tensor:
    """Share of a picture's power above a quarter of the sampling rate, (B,)."""
    grey = image.mean(1)
    spectrum = cast(Tensor, torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True))).abs().square()
    down = torch.fft.fftfreq(grey.shape[1], device=image.device)[:, None]
    right = torch.fft.rfftfreq(grey.shape[2], device=image.device)
    high = (down.square() + right.square()).sqrt() > 0.25
    return spectrum[:, high].sum(1) / spectrum.sum((1, 2))


def _measure_reduced(made: Tensor, real: Tensor) -> float:
    return measure_psnr(functional.avg_pool2d(made, 4), functional.avg_pool2d(real, 4)).mean().item()


def _draw(path: Path, *columns: Tensor) -> None:
    """The middle 512 px of each picture; a row for each."""
    cut = [column[..., 256:768, 256:768].add(1).mul(127.5).round().byte().cpu() for column in columns]
    rows = [torch.cat([column[row] for column in cut], dim=2) for row in range(len(cut[0]))]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(path, quality=88)

"""Train the latent upscaler: the denoiser once more, with the latent of an enlarged smaller picture as further channels.

Noise on the lower resolution as in Ho et al., "Cascaded Diffusion Models" (2022), section 4.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from training.dataset import Picture, read_folders
from training.diffusion import build_noising
from training.latents import Captions, encode_captions
from training.pairs import Pairs, encode_pairs
from training.parts import load_denoiser, load_encoders, place, write_half
from training.progress import (
    Average,
    Budget,
    Checkpoint,
    choose_device,
    descend,
    half_precision,
    keep,
    learning_rate,
    resume,
    set_learning_rate,
    set_seed,
)
from training.ranks import is_leader, join_ranks, leave_ranks
from training.sampling import FEW_STEPS

FOLDER = "latent_upscaler"
RECIPE = replace(FEW_STEPS, steps=4)
MOST_NOISE = 0.3  # deviations, on the lead
_SMALLEST_PX = 512


@dataclass(frozen=True, slots=True)
class UpscalerOptions:
    """Sizes and rates of a step."""

    windows: int = 30_000
    large_windows: int = 4_000  # of 1024 px
    batch: int = 128
    large_every: int = 8  # one step in eight is on large windows, an eighth as many
    empty_share: float = 0.1
    peak_rate: float = 3e-4


@dataclass(frozen=True, slots=True)
class UpscalerLessons:
    """What an upscaler learns from: pairs by the side of their windows in latent pixels, and captions."""

    pairs: dict[int, Pairs]
    captions: Captions

    def draw(self, step: int, options: UpscalerOptions) -> Pairs:
        """Of this step."""
        if step % options.large_every == options.large_every - 1:
            return self.pairs[128].draw(max(1, options.batch // 8))
        return self.pairs[64].draw(options.batch)


def build_upscaler(denoiser: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same network with twice the channels at its input; those that are new count nothing at first."""
    config: dict[str, Any] = {**denoiser.config, "in_channels": 2 * denoiser.config["in_channels"]}
    config.pop("_name_or_path", None)
    upscaler = cast(
        UNet2DConditionModel,
        UNet2DConditionModel.from_config(config),  # pyright: ignore[reportUnknownMemberType]
    )
    weights = denoiser.state_dict()
    known = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([known, torch.zeros_like(known)], dim=1)
    upscaler.load_state_dict(weights)
    return upscaler


class Conditioned(nn.Module):
    """An upscaler that is asked like a denoiser: it sees the leads (B, C, side, side) of its batch."""

    def __init__(self, upscaler: UNet2DConditionModel, leads: Tensor) -> None:
        super().__init__()
        self.upscaler, self.leads = upscaler, leads

    def forward(self, noisy: Tensor, timestep: Tensor, text: Tensor, return_dict: bool = False) -> Any:
        return self.upscaler(torch.cat([noisy, self.leads], dim=1), timestep, text, return_dict=return_dict)


def read_training(folders: list[Path]) -> list[Picture]:
    """Pictures that may be trained on."""
    return [picture for picture in read_folders(folders) if picture.for_training]


def encode_lessons(
    folders: list[Path], encoders: Path, options: UpscalerOptions, device: torch.device, seed: int
) -> tuple[UpscalerLessons, AutoencoderTiny]:
    """Pairs and captions of the pictures that may be trained on, and the autoencoder that made them."""
    vae, text, tokenizer = load_encoders(encoders, device)
    pictures = read_training(folders)
    counts = {64: options.windows, 128: options.large_windows}
    pairs = {
        side: encode_pairs(vae, pictures, side, count, device, seed + side) for side, count in counts.items()
    }
    return UpscalerLessons(pairs, encode_captions(text, tokenizer, pictures, device, seed)), vae


class UpscalerTraining:
    """The network, its optimizer and one step of learning to denoise."""

    def __init__(
        self, upscaler: UNet2DConditionModel, options: UpscalerOptions, device: torch.device
    ) -> None:
        self.options, self.device = options, device
        self.upscaler = place(upscaler, device)
        self.optimizer = torch.optim.AdamW(
            upscaler.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
        )
        self.average = Average(upscaler, decay=0.999)
        self.noising = build_noising(device)

    def step(self, pairs: Pairs, text: Tensor) -> Tensor:
        """One update."""
        noise = torch.randn_like(pairs.latents)
        timestep = torch.randint(1000, (len(noise),), device=self.device)
        noisy = self.noising.add(pairs.latents, noise, timestep)
        target = self.noising.velocity(pairs.latents, noise, timestep)
        with half_precision(self.device):
            velocity = Conditioned(self.upscaler, pairs.disturb(MOST_NOISE))(noisy, timestep, text)[0]
        loss = (velocity.float() - target).square().mean()
        descend(loss, self.optimizer, self.upscaler, largest_norm=1.0)
        self.average.update()
        return loss.detach()

    def state(self) -> dict[str, object]:
        """Everything that a later run needs to go on."""
        return {
            "model": self.upscaler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "average_steps": self.average.steps,
        }

    def restore(self, state: Checkpoint) -> None:
        """The inverse of `state`."""
        self.upscaler.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values, self.average.steps = state["average"], state["average_steps"]


def train(
    lessons: UpscalerLessons,
    training: UpscalerTraining,
    out: Path,
    budget: Budget,
    seed: int,
    report: Callable[[str], None],
) -> None:
    """Train or go on, checkpoint, and write the averaged weights as `out/latent_upscaler/` (fp16)."""
    options = training.options
    first = resume(training, budget, out / "upscaler.pt", training.device)
    set_seed(seed + first)
    for step in budget.steps(first):
        rate = learning_rate(options.peak_rate, step, budget.fraction, decay_from=0.5)
        set_learning_rate(training.optimizer, rate)
        pairs = lessons.draw(step, options)
        loss = training.step(pairs, lessons.captions.draw(pairs.owners, options.empty_share))
        if step % 100 == 0:
            report(f"step {step} {budget.elapsed:.0f}s loss {loss.item():.4f}")
        first = step + 1
    if is_leader():
        keep(training, budget, out / "upscaler.pt", first)
        with training.average.swapped():
            write_half(training.upscaler, out / FOLDER)


def print_leader(line: str) -> None:
    """Of all ranks, one prints."""
    if is_leader():
        print(line, flush=True)


def main() -> None:
    """Command line: `python -m training.upscaler FOLDER [FOLDER ...] --parts PARTS --out OUT --seconds 240`."""
    parser, usual = argparse.ArgumentParser(description=main.__doc__), UpscalerOptions()
    parser.add_argument("folders", type=Path, nargs="+", help="each with captions.jsonl")
    parser.add_argument("--parts", type=Path, required=True, help="folder with the encoders and unet/")
    parser.add_argument("--begin-with", type=Path, help="earlier weights of `--out`; else those of unet/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--call-seconds", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--windows", type=int, default=usual.windows)
    parser.add_argument("--large-windows", type=int, default=usual.large_windows)
    parser.add_argument("--seed", type=int, default=6)
    chosen = parser.parse_args()
    options = UpscalerOptions(chosen.windows, chosen.large_windows, chosen.batch)
    rank, device = join_ranks(), choose_device()
    seed = chosen.seed + 1000 * rank
    set_seed(chosen.seed)
    lessons, _ = encode_lessons(chosen.folders, chosen.parts, options, device, seed)
    print_leader(f"windows { ({side: len(pairs.latents) for side, pairs in lessons.pairs.items()}) }")
    upscaler = (
        load_denoiser(chosen.begin_with / FOLDER)
        if chosen.begin_with
        else build_upscaler(load_denoiser(chosen.parts / "unet"))
    )
    training = UpscalerTraining(upscaler, options, device)
    budget = Budget(chosen.seconds, chosen.call_seconds)
    train(lessons, training, chosen.out, budget, seed, print_leader)
    leave_ranks()


if __name__ == "__main__":
    main()

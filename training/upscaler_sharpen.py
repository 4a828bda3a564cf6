"""Sharpen the latent upscaler: a critic must take the windows that it makes in few steps for real ones.

As `sharpen` does for the denoiser. What the lead decides is kept by the distance of reduced latents.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from training.critic import Critic, LatentBackbone, PictureBackbone, critic_loss, generator_loss
from training.diffusion import build_noising
from training.pairs import Pairs
from training.parts import copy_denoiser, load_denoiser, place, write_half
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
from training.ranks import average, is_leader, join_ranks, leave_ranks
from training.sampling import denoise
from training.upscaler import (
    FOLDER,
    MOST_NOISE,
    RECIPE,
    Conditioned,
    UpscalerLessons,
    UpscalerOptions,
    choose_windows,
    encode_lessons,
    print_leader,
)
from training.upscaler_figures import evaluate

_COARSE = 4  # latent pixels
_WRITE_EVERY = 200  # steps


@dataclass(frozen=True, slots=True)
class UpscalerSharpenOptions:
    """Rates and weights of a step."""

    anchor: float = 5.0  # weight of staying near the known predictions
    coarse: float = 5.0  # weight of what the real window is when reduced
    peak_rate: float = 5e-5
    critic_rate: float = 2e-3


class UpscalerSharpening:
    """Upscaler and critic, and one update of both."""

    def __init__(
        self,
        upscaler: UNet2DConditionModel,
        critic: Critic,
        options: UpscalerSharpenOptions,
        device: torch.device,
    ) -> None:
        self.options, self.device = options, device
        self.upscaler = place(upscaler, device).requires_grad_(True)
        self.known = place(copy_denoiser(upscaler), device).requires_grad_(False)
        self.critic = critic.to(device)
        self.optimizer = _build_optimizer(self.upscaler)
        self.critic_optimizer = _build_optimizer(self.critic.heads)
        self.average = Average(self.upscaler, decay=0.995)
        self.noising = build_noising(device)
        scheduler = RECIPE.build_scheduler()
        scheduler.set_timesteps(RECIPE.steps, device=device)
        self.timesteps = scheduler.timesteps

    def step(self, pairs: Pairs, text: Tensor) -> dict[str, Tensor]:
        """One update of the critic, then one of the upscaler."""
        if not self.average.steps:
            self._calibrate_critic(pairs, text)
        leads = pairs.disturb(MOST_NOISE)
        noise = torch.randn_like(pairs.latents)
        generated = denoise(
            Conditioned(self.upscaler, leads), RECIPE, noise, text, text[:1], learned=RECIPE.steps
        )
        critic = self._step_critic(pairs, text, generated.detach())
        scores = self._score(generated, text).mean()
        coarse = functional.avg_pool2d(generated - pairs.latents, _COARSE).square().mean()
        distance = self._measure_distance(pairs, leads, text)
        loss = generator_loss(scores) + self.options.coarse * coarse + self.options.anchor * distance
        descend(loss, self.optimizer, self.upscaler, largest_norm=1.0)
        self.average.update()
        losses = {"critic": critic, "scores": scores, "coarse": coarse, "distance": distance}
        return {name: loss.detach() for name, loss in losses.items()}

    def _score(self, latent: Tensor, text: Tensor) -> Tensor:
        with half_precision(self.device):
            return self.critic(latent, text).float()

    def _calibrate_critic(self, pairs: Pairs, text: Tensor) -> None:
        with half_precision(self.device):
            self.critic.calibrate(pairs.latents, text)
        average(list(self.critic.heads.buffers()))

    def _step_critic(self, pairs: Pairs, text: Tensor, generated: Tensor) -> Tensor:
        loss = critic_loss(self._score(pairs.latents, text), self._score(generated, text))
        descend(loss, self.critic_optimizer, self.critic.heads)
        return loss.detach()

    def _measure_distance(self, pairs: Pairs, leads: Tensor, text: Tensor) -> Tensor:
        """Mean squared distance from the known predictions, on noisy real latents."""
        chosen = torch.randint(len(self.timesteps), (len(leads),), device=self.device)
        timestep = self.timesteps[chosen]
        noisy = self.noising.add(pairs.latents, torch.randn_like(pairs.latents), timestep)
        with half_precision(self.device):
            velocity = Conditioned(self.upscaler, leads)(noisy, timestep, text)[0].float()
            with torch.no_grad():
                wanted = Conditioned(self.known, leads)(noisy, timestep, text)[0].float()
        return (velocity - wanted).square().mean()

    def set_rates(self, step: int, fraction: float) -> None:
        """Of both sides, by how much of the time is over."""
        for optimizer, peak in (
            (self.optimizer, self.options.peak_rate),
            (self.critic_optimizer, self.options.critic_rate),
        ):
            set_learning_rate(optimizer, learning_rate(peak, step, fraction, warmup=50, decay_from=0.6))

    def state(self) -> dict[str, object]:
        """Everything that a later run needs to go on."""
        return {
            "upscaler": self.upscaler.state_dict(),
            "critic": self.critic.heads.state_dict(),  # calibration included
            "optimizers": [self.optimizer.state_dict(), self.critic_optimizer.state_dict()],
            "average": self.average.values,
            "average_steps": self.average.steps,
        }

    def restore(self, state: Checkpoint) -> None:
        """The inverse of `state`."""
        self.upscaler.load_state_dict(state["upscaler"])
        self.critic.heads.load_state_dict(state["critic"])
        for optimizer, kept in zip((self.optimizer, self.critic_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.average.values, self.average.steps = state["average"], state["average_steps"]


def _build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), betas=(0.0, 0.99), weight_decay=0.0)


def sharpen(
    lessons: UpscalerLessons,
    sharpening: UpscalerSharpening,
    out: Path,
    budget: Budget,
    sizes: UpscalerOptions,
    seed: int,
) -> None:
    """Sharpen or go on; now and then, and at the end, write a checkpoint and the averaged weights (fp16)."""
    checkpoint = out / "upscaler-sharpen.pt"
    first = resume(sharpening, budget, checkpoint, sharpening.device)
    set_seed(seed + first)
    for step in budget.steps(first):
        sharpening.set_rates(step, budget.fraction)
        side, count = choose_windows(step, sizes)
        pairs = lessons.pairs[side].draw(count)
        losses = sharpening.step(pairs, lessons.captions.draw(pairs.owners, sizes.empty_share))
        first = step + 1
        if step % 20 == 0:
            shown = " ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
            print_leader(f"step {step} {budget.elapsed:.0f}s {shown}")
        if first % _WRITE_EVERY == 0:
            _write(sharpening, budget, checkpoint, out, first)
    _write(sharpening, budget, checkpoint, out, first)


def _write(sharpening: UpscalerSharpening, budget: Budget, checkpoint: Path, out: Path, step: int) -> None:
    if is_leader():
        keep(sharpening, budget, checkpoint, step)
        with sharpening.average.swapped():
            write_half(sharpening.upscaler, out / FOLDER)


def _build_critic(vae: AutoencoderTiny, denoiser: UNet2DConditionModel, device: torch.device) -> Critic:
    """As many maps of latents as of pictures; the pictures also reduced, where forms are seen."""
    backbones = (LatentBackbone(copy_denoiser(denoiser), build_noising(device)) for _ in range(2))
    pictures = PictureBackbone(vae, reduced=True)
    return Critic([pictures, *backbones], denoiser.config["cross_attention_dim"])


def main() -> None:
    """Command line: `python -m training.upscaler_sharpen FOLDER [...] --parts PARTS --begin-with OUT --out SHARP`."""
    parser, usual = argparse.ArgumentParser(description=main.__doc__), UpscalerSharpenOptions()
    parser.add_argument("folders", type=Path, nargs="+", help="each with captions.jsonl")
    parser.add_argument("--parts", type=Path, required=True, help="folder with the encoders and unet/")
    parser.add_argument("--begin-with", type=Path, required=True, help="what `training.upscaler` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--call-seconds", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--windows", type=int, default=UpscalerOptions().windows)
    parser.add_argument("--large-windows", type=int, default=UpscalerOptions().large_windows)
    parser.add_argument("--anchor", type=float, default=usual.anchor)
    parser.add_argument("--coarse", type=float, default=usual.coarse)
    parser.add_argument("--peak-rate", type=float, default=usual.peak_rate)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--figures", action="store_true", help="measure on the pictures that are held out")
    chosen = parser.parse_args()
    sizes = UpscalerOptions(chosen.windows, chosen.large_windows, chosen.batch)
    options = UpscalerSharpenOptions(chosen.anchor, chosen.coarse, chosen.peak_rate)
    rank, device = join_ranks(), choose_device()
    seed = chosen.seed + 1000 * rank
    lessons, vae = encode_lessons(chosen.folders, chosen.parts, sizes, device, seed)
    set_seed(chosen.seed)  # the same critic on every rank
    critic = _build_critic(vae, load_denoiser(chosen.parts / "unet"), device)
    upscaler = load_denoiser(chosen.begin_with / FOLDER)
    sharpening = UpscalerSharpening(upscaler, critic, options, device)
    chosen.out.mkdir(parents=True, exist_ok=True)
    sharpen(lessons, sharpening, chosen.out, Budget(chosen.seconds, chosen.call_seconds), sizes, seed)
    if chosen.figures and is_leader():
        evaluate(chosen.out / FOLDER, chosen.parts, chosen.folders, chosen.out, device)
    leave_ranks()


if __name__ == "__main__":
    main()

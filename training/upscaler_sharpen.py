"""Sharpen the latent upscaler: a critic must take the windows that it makes in few steps for real ones.

As `sharpen` does for the denoiser. What the lead decides is kept by the distance of reduced latents and of reduced
pictures. A part of the leads is painted, as in use; real windows of the same kinds of picture stand against those.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from training.adversarial import AdversarialTraining, Losses, run_adversarial
from training.critic import Critic, LatentBackbone, PictureBackbone, generator_loss
from training.diffusion import build_noising
from training.features import FeaturePair, perceptual_distance
from training.latents import decode_latents, decode_to_learn
from training.painted import SCALE, PaintedLeads, PaintedWindows, paint_leads
from training.pairs import SCALES, Pairs
from training.parts import copy_denoiser, load_denoiser, place
from training.progress import Budget, choose_device, half_precision, set_seed
from training.ranks import is_leader, join_ranks, leave_ranks
from training.sampling import denoise, list_timesteps
from training.upscaler import (
    FOLDER,
    MOST_NOISE,
    RECIPE,
    Conditioned,
    UpscalerLessons,
    UpscalerOptions,
    encode_lessons,
)
from training.upscaler_figures import evaluate

_COARSE = 4  # latent pixels
_FREEDOM = 4  # pixels of a painted lead within which detail may be added
_PAINTED_NOISE = 0.1  # deviations, on a painted lead, as in use


@dataclass(frozen=True, slots=True)
class UpscalerSharpenOptions:
    """Rates and weights of a step."""

    anchor: float = 5.0  # weight of staying near the known predictions
    coarse: float = 5.0  # weight of what the real window is when reduced
    fidelity: float = 30.0  # weight of what the decoded window is when reduced to its lead's size
    perceptual: float = 0.0  # weight of the perceptual distance of the real windows
    painted_share: float = 0.5  # of a step's leads
    painted: int = 2_000  # pictures
    peak_rate: float = 5e-5
    critic_rate: float = 2e-3


class UpscalerSharpening(AdversarialTraining):
    """Upscaler and critic, and one update of both."""

    def __init__(
        self,
        upscaler: UNet2DConditionModel,
        critic: Critic,
        vae: AutoencoderTiny,
        options: UpscalerSharpenOptions,
        device: torch.device,
    ) -> None:
        super().__init__(upscaler, critic, (options.peak_rate, options.critic_rate), device)
        self.options, self.vae = options, vae
        self.features = place(FeaturePair(), device)
        self.known = place(copy_denoiser(upscaler), device).requires_grad_(False)
        self.noising = build_noising(device)
        self.timesteps = list_timesteps(RECIPE, device)

    def step(self, pairs: Pairs, text: Tensor, painted: PaintedWindows, painted_text: Tensor) -> Losses:
        """One update of the critic, then one of the upscaler.

        Args:
            pairs: real windows; the first of them are shown the upscaler, as many as are not painted.
        """
        count = len(pairs.latents) - len(painted.leads)
        shown, leads = pairs.first(count), self._disturb(pairs.first(count), painted)
        asked = torch.cat([text[:count], painted_text])
        noise = torch.randn_like(pairs.latents)
        generated = denoise(
            Conditioned(self.generator, leads), RECIPE, noise, asked, asked[:1], learned=RECIPE.steps
        )
        made = self._extract(generated, asked)
        critic = self._step_critic((self._extract(pairs.latents, text), text), (made, asked))
        scores = self._score((made, asked)).mean()
        coarse = functional.avg_pool2d(generated[:count] - shown.latents, _COARSE).square().mean()
        distance = self._measure_distance(shown, leads[:count], text[:count])
        fidelity, perceptual = self._measure_fidelity(generated, shown, painted)
        self._step_generator(
            generator_loss(scores)
            + self.options.coarse * coarse
            + self.options.anchor * distance
            + self.options.fidelity * fidelity
            + self.options.perceptual * perceptual
        )
        losses = {
            "critic": critic, "scores": scores, "coarse": coarse, "distance": distance, "fidelity": fidelity,
            "perceptual": perceptual,
        }  # fmt: skip
        return {name: loss.detach() for name, loss in losses.items()}

    def _disturb(self, shown: Pairs, painted: PaintedWindows) -> Tensor:
        noise = _PAINTED_NOISE * torch.randn_like(painted.leads)
        return torch.cat([shown.disturb(MOST_NOISE), painted.leads + noise])

    def _measure_distance(self, pairs: Pairs, leads: Tensor, text: Tensor) -> Tensor:
        """Mean squared distance from the known predictions, on noisy real latents."""
        chosen = torch.randint(len(self.timesteps), (len(leads),), device=self.device)
        timestep = self.timesteps[chosen]
        noisy = self.noising.add(pairs.latents, torch.randn_like(pairs.latents), timestep)
        with half_precision(self.device):
            velocity = Conditioned(self.generator, leads)(noisy, timestep, text)[0].float()
            with torch.no_grad():
                wanted = Conditioned(self.known, leads)(noisy, timestep, text)[0].float()
        return (velocity - wanted).square().mean()

    def _measure_fidelity(
        self, generated: Tensor, shown: Pairs, painted: PaintedWindows
    ) -> tuple[Tensor, Tensor]:
        """Of the decoded windows.

        Returns:
            mean squared and absolute error of what is reduced to the lead's size, or to a part of it where that is
            painted; and the perceptual distance of what is real.
        """
        with half_precision(self.device):
            made = decode_to_learn(self.vae, generated).float()
        real, count = decode_latents(self.vae, shown.latents), len(shown.latents)
        misses = [made[:0]]
        for scale in SCALES:
            rows = (shown.scales == scale).nonzero()[:, 0]
            misses.append(functional.avg_pool2d(made[rows] - real[rows], scale).flatten())
        coarse = functional.avg_pool2d(made[count:], SCALE * _FREEDOM)
        misses.append((coarse - functional.avg_pool2d(painted.pictures, _FREEDOM)).flatten())
        every = torch.stack([miss.square().mean() + 0.1 * miss.abs().mean() for miss in misses if len(miss)])
        with half_precision(self.device):
            distance = perceptual_distance(self.features, made[:count], real).mean()
        return every.mean(), distance


def sharpen(
    lessons: UpscalerLessons,
    painted: PaintedLeads,
    sharpening: UpscalerSharpening,
    out: Path,
    budget: Budget,
    sizes: UpscalerOptions,
    seed: int,
) -> None:
    """Sharpen or go on, and write the averaged weights (fp16) as `out/latent_upscaler`."""

    def take_step(step: int) -> Losses:
        pairs = lessons.draw(step, sizes)
        count = round(sharpening.options.painted_share * len(pairs.latents))
        windows = painted.draw(count, pairs.latents.shape[-1])
        text, painted_text = (
            lessons.captions.draw(each.owners, sizes.empty_share) for each in (pairs, windows)
        )
        return sharpening.step(pairs, text, windows, painted_text)

    run_adversarial(sharpening, take_step, out / FOLDER, budget, seed)


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
    parser.add_argument("--fidelity", type=float, default=usual.fidelity)
    parser.add_argument(
        "--perceptual", type=float, default=usual.perceptual, help="weight of the perceptual distance"
    )
    parser.add_argument(
        "--painted", type=int, default=usual.painted, help="pictures that the denoiser paints"
    )
    parser.add_argument("--peak-rate", type=float, default=usual.peak_rate)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--figures", action="store_true", help="measure on the pictures that are held out")
    chosen = parser.parse_args()
    sizes = UpscalerOptions(chosen.windows, chosen.large_windows, chosen.batch)
    options = UpscalerSharpenOptions(
        chosen.anchor,
        chosen.coarse,
        chosen.fidelity,
        chosen.perceptual,
        painted=chosen.painted,
        peak_rate=chosen.peak_rate,
    )
    rank, device = join_ranks(), choose_device()
    seed = chosen.seed + 1000 * rank
    lessons, vae = encode_lessons(chosen.folders, chosen.parts, sizes, device, seed)
    set_seed(chosen.seed)  # the same critic on every rank
    denoiser = place(load_denoiser(chosen.parts / "unet"), device).eval()
    painted = paint_leads(denoiser, vae, lessons.captions, options.painted, seed)
    critic = _build_critic(vae, denoiser, device)
    upscaler = load_denoiser(chosen.begin_with / FOLDER)
    sharpening = UpscalerSharpening(upscaler, critic, vae, options, device)
    chosen.out.mkdir(parents=True, exist_ok=True)
    sharpen(
        lessons, painted, sharpening, chosen.out, Budget(chosen.seconds, chosen.call_seconds), sizes, seed
    )
    if chosen.figures and is_leader():
        evaluate(chosen.out / FOLDER, chosen.parts, chosen.folders, chosen.out, device)
    leave_ranks()


if __name__ == "__main__":
    main()

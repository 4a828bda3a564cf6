"""Sharpen a denoiser: a critic must take the latents that it generates for real ones.

Adversarial diffusion distillation (Sauer et al. 2023, 2024), but the steps of the recipe are trained as one
network, as in DRaFT (Clark et al. 2024): gradients of the finished latent flow through the last of them.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from training.adversarial import AdversarialTraining, Losses, run_adversarial
from training.classifier import AuxiliaryClassifier, build_classifier
from training.critic import Critic, LatentBackbone, PictureBackbone, generator_loss
from training.denoiser import (
    DenoiserOptions,
    Lessons,
    build_lessons,
    choose_crops,
)
from training.diffusion import build_noising
from training.parts import copy_denoiser, freeze, load_autoencoder, load_denoiser
from training.progress import (
    Budget,
    choose_device,
    half_precision,
    set_seed,
)
from training.ranks import join_ranks, leave_ranks
from training.sampling import FEW_STEPS, FULL, Recipe, denoise, list_timesteps

COARSE_PX = 8  # latent pixels
SIDE = 64  # latent pixels of what is kept as it was


@dataclass(frozen=True, slots=True)
class SharpenOptions:
    """Sizes, rates and weights of a step."""

    learned_steps: int = 5  # the last ones of the recipe
    anchor: float = 20.0  # weight of staying near the known predictions
    view_anchor: float = 20.0  # the same, of what has an up and a down
    kept_share: float = 0.0  # captions beside the crops', of the crops' number
    kept: float = 20.0  # the same, of those captions, on the way to what they were generated as
    seen_below: int = 0  # timestep below which views are held to what they are, not to the known predictions
    coarse: float = 0.3  # of that, what colours and layout weigh
    empty_share: float = 0.1  # of the anchor's captions
    classifier: float = 0.01  # weight of being classified as the caption's category
    peak_rate: float = 5e-5
    critic_rate: float = 2e-3


@dataclass(frozen=True, slots=True)
class Variant:
    """Which denoiser is sharpened, and how it is sampled."""

    folder: str
    recipe: Recipe
    learned_steps: int


VARIANTS = {"few": Variant("unet", FEW_STEPS, FEW_STEPS.steps), "full": Variant("unet_full", FULL, 3)}


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch.

    Attributes:
        real: latents, (B, C, side, side).
        text: states of their captions in some phrasing; the same captions are generated.
        known: states of the phrasing that the denoiser knew best before, (B, tokens, width) both.
        owners: (B,), the pictures that the captions are of.
        views: (B,), whether these have an up and a down.
        kept: states of further captions whose pictures shall stay as they are, (K, tokens, width), K >= 0.
    """

    real: Tensor
    text: Tensor
    known: Tensor
    owners: Tensor
    views: Tensor
    kept: Tensor


class Sharpening(AdversarialTraining):
    """Denoiser and critic, and one update of both."""

    def __init__(
        self,
        denoiser: UNet2DConditionModel,
        critic: Critic,
        classifier: AuxiliaryClassifier | None,
        recipe: Recipe,
        options: SharpenOptions,
        device: torch.device,
    ) -> None:
        super().__init__(denoiser, critic, (options.peak_rate, options.critic_rate), device)
        self.options, self.recipe, self.classifier = options, recipe, classifier
        self.known = freeze(copy_denoiser(denoiser), device)
        self.noising = build_noising(device)
        self.timesteps = list_timesteps(recipe, device)

    def step(self, batch: Batch, empty: Tensor) -> Losses:
        """One update of the critic, then one of the denoiser; `empty` is (1, tokens, width).

        Real pictures under their neighbours' captions are false as well (Reed et al. 2016, algorithm 1).
        """
        generated = self._generate(batch, empty)
        real, wrong = self._extract(batch.real, batch.text), batch.text.roll(1, dims=0)
        made = self._extract(generated, batch.text), batch.text
        critic = self._step_critic(
            (real, batch.text), made, (self._extract(batch.real, wrong, known=real), wrong)
        )
        losses = {
            "generator": generator_loss(self._score(made)),
            "distance": self._measure_distance(batch, empty),
            "kept": self._measure_kept(batch.kept, empty),
            "classifier": self._classify(generated, batch.owners),
        }
        self._step_generator(sum(losses.values(), torch.zeros((), device=self.device)))
        return {"critic": critic} | {name: loss.detach() for name, loss in losses.items()}

    def _classify(self, generated: Tensor, owners: Tensor) -> Tensor:
        if self.classifier is None:
            return torch.zeros((), device=self.device)
        return self.options.classifier * self.classifier.measure_loss(generated, owners)

    def _generate(self, batch: Batch, empty: Tensor) -> Tensor:
        noise = torch.randn_like(batch.real)
        return denoise(self.generator, self.recipe, noise, batch.text, empty, self.options.learned_steps)

    def _measure_distance(self, batch: Batch, empty: Tensor) -> Tensor:
        """Mean squared distance from the known predictions, on noisy real latents, each as heavy as its anchor.

        A caption in another phrasing shall mean what the known one does.
        """
        timestep = self.timesteps[torch.randint(len(self.timesteps), (len(batch.real),), device=self.device)]
        noise = torch.randn_like(batch.real)
        noisy = self.noising.add(batch.real, noise, timestep)
        dropped = torch.rand(len(noisy), 1, 1, device=self.device) < self.options.empty_share
        text, known = (torch.where(dropped, empty, each) for each in (batch.text, batch.known))
        with half_precision(self.device):
            velocity = self.generator(noisy, timestep, text, return_dict=False)[0].float()
            with torch.no_grad():
                wanted = self.known(noisy, timestep, known, return_dict=False)[0].float()
        seen = (batch.views & (timestep < self.options.seen_below)).view(-1, 1, 1, 1)
        moved = velocity - torch.where(seen, self.noising.velocity(batch.real, noise, timestep), wanted)
        coarse = functional.avg_pool2d(moved, COARSE_PX).square().mean(dim=(1, 2, 3))
        distance = moved.square().mean(dim=(1, 2, 3)) - (1 - self.options.coarse) * coarse
        return (torch.where(batch.views, self.options.view_anchor, self.options.anchor) * distance).mean()

    def _measure_kept(self, text: Tensor, empty: Tensor) -> Tensor:
        """Mean squared distance from the known predictions, somewhere on the known denoiser's own way from noise."""
        if not len(text):
            return torch.zeros((), device=self.device)
        chosen, channels = int(torch.randint(len(self.timesteps), (1,))), self.known.config["in_channels"]
        timestep = self.timesteps[chosen]
        noise = torch.randn(len(text), channels, SIDE, SIDE, device=self.device)
        with torch.no_grad(), half_precision(self.device):
            noisy = denoise(self.known, self.recipe, noise, text, empty, first=chosen)
            wanted = self.known(noisy, timestep, text, return_dict=False)[0].float()
        with half_precision(self.device):
            velocity = self.generator(noisy, timestep, text, return_dict=False)[0].float()
        return self.options.kept * (velocity - wanted).square().mean()


def sharpen(
    lessons: Lessons, sharpening: Sharpening, out: Path, budget: Budget, sizes: DenoiserOptions, seed: int
) -> None:
    """Sharpen or go on, and write the averaged weights (fp16) as `out`."""
    empty, kept_share = lessons.captions.empty(1), sharpening.options.kept_share

    def take_step(step: int) -> Losses:
        return sharpening.step(_draw(lessons, step, sizes, kept_share), empty)

    run_adversarial(sharpening, take_step, out, budget, seed)


def _draw(lessons: Lessons, step: int, sizes: DenoiserOptions, kept_share: float) -> Batch:
    side, count = choose_crops(step, sizes)
    latent, owners = lessons.banks[side].draw(count)
    captions = lessons.captions
    kept = captions.draw(lessons.draw_uncut(round(kept_share * count)), empty_share=0.1)
    return Batch(latent.float(), *captions.draw_pairs(owners), owners, captions.views[owners], kept)


def _build_critic(
    vae: AutoencoderTiny, denoiser: UNet2DConditionModel, device: torch.device, *, reduced: bool
) -> Critic:
    """As many maps of latents as of pictures: a critic of pictures alone leaves woven patterns.

    Args:
        reduced: whether the pictures are also seen at half their size, where forms are seen.
    """
    latent_backbones = (LatentBackbone(copy_denoiser(denoiser), build_noising(device)) for _ in range(2))
    pictures = PictureBackbone(vae, reduced=reduced)
    return Critic([pictures, *latent_backbones], denoiser.config["cross_attention_dim"])


def main() -> None:
    """Command line: `python -m training.sharpen SHARD [SHARD ...] --parts PARTS --out SHARP --variant few`."""
    parser, usual = argparse.ArgumentParser(description=main.__doc__), SharpenOptions()
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--parts", type=Path, required=True, help="folder with the encoders and the denoiser")
    parser.add_argument("--out", type=Path, required=True, help="where the sharpened denoiser goes")
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="few")
    parser.add_argument("--guidance-scale", type=float, help="in place of the recipe's")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--call-seconds", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--crops", type=int, default=16_000)
    parser.add_argument("--anchor", type=float, default=usual.anchor)
    parser.add_argument(
        "--view-anchor", type=float, help="of what has an up and a down; --anchor if left out"
    )
    parser.add_argument("--views", type=float, help="share of the crops that shall be photographs of views")
    parser.add_argument("--kept", type=float, default=usual.kept_share, help="captions whose pictures shall stay as they are, of the crops' number")  # fmt: skip
    parser.add_argument("--seen-below", type=int, default=usual.seen_below, help="timestep below which views are held to what they are")  # fmt: skip
    parser.add_argument("--large-every", type=int, default=8, help="one step in so many is on 1024 px crops; 0: none")  # fmt: skip
    parser.add_argument("--reduced", action="store_true", help="let the critic see the pictures reduced, too")
    parser.add_argument(
        "--classifier", type=float, default=usual.classifier, help="weight of the auxiliary classifier"
    )
    parser.add_argument("--peak-rate", type=float, default=usual.peak_rate)
    parser.add_argument("--seed", type=int, default=3, help="the denoiser's, to find its latents again")
    chosen = parser.parse_args()
    rank, device = join_ranks(), choose_device()
    variant, seed = VARIANTS[chosen.variant], chosen.seed + 1000 * rank
    sizes = DenoiserOptions(
        batch=chosen.batch, crops=chosen.crops, views=chosen.views, large_every=chosen.large_every
    )
    denoiser, vae = load_denoiser(chosen.parts / variant.folder), load_autoencoder(chosen.parts / "vae")
    lessons = build_lessons(chosen.shards, chosen.parts, sizes, device, seed)
    options = SharpenOptions(
        variant.learned_steps,
        chosen.anchor,
        chosen.anchor if chosen.view_anchor is None else chosen.view_anchor,
        kept_share=chosen.kept,
        seen_below=chosen.seen_below,
        classifier=chosen.classifier,
        peak_rate=chosen.peak_rate,
    )
    recipe = replace(variant.recipe, guidance_scale=chosen.guidance_scale or variant.recipe.guidance_scale)
    set_seed(chosen.seed)  # the same critic on every rank
    critic = _build_critic(vae, denoiser, device, reduced=chosen.reduced)
    classifier = build_classifier(vae, lessons.banks[512], lessons.captions) if chosen.classifier else None
    sharpening = Sharpening(denoiser, critic, classifier, recipe, options, device)
    budget = Budget(chosen.seconds, chosen.call_seconds)
    sharpen(lessons, sharpening, chosen.out / variant.folder, budget, sizes, seed)
    leave_ranks()


if __name__ == "__main__":
    main()

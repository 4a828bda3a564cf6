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
from torch import Tensor, nn
from torch.nn import functional

from training.classifier import AuxiliaryClassifier, build_classifier
from training.critic import Critic, LatentBackbone, PictureBackbone, critic_loss, generator_loss
from training.denoiser import (
    DenoiserOptions,
    Lessons,
    build_lessons,
    choose_crops,
)
from training.diffusion import build_noising
from training.parts import copy_denoiser, load_autoencoder, load_denoiser, place, write_half
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
from training.sampling import FEW_STEPS, FULL, Recipe, denoise

WRITE_EVERY = 250  # steps
COARSE_PX = 8  # latent pixels


@dataclass(frozen=True, slots=True)
class SharpenOptions:
    """Sizes, rates and weights of a step."""

    learned_steps: int = 5  # the last ones of the recipe
    anchor: float = 20.0  # weight of staying near the known predictions
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
    """

    real: Tensor
    text: Tensor
    known: Tensor
    owners: Tensor


class Sharpening:
    """Denoiser and critic, and one update of both."""

    def __init__(
        self,
        denoiser: UNet2DConditionModel,
        critic: Critic,
        classifier: AuxiliaryClassifier,
        recipe: Recipe,
        options: SharpenOptions,
        device: torch.device,
    ) -> None:
        self.options, self.device, self.recipe = options, device, recipe
        self.denoiser = place(denoiser, device).requires_grad_(True)
        self.known = place(copy_denoiser(denoiser), device).requires_grad_(False)
        self.critic, self.classifier = critic.to(device), classifier
        self.optimizer = _build_optimizer(self.denoiser)
        self.critic_optimizer = _build_optimizer(self.critic.heads)
        self.average = Average(self.denoiser, decay=0.995)
        self.noising = build_noising(device)
        scheduler = recipe.build_scheduler()
        scheduler.set_timesteps(recipe.steps, device=device)
        self.timesteps = scheduler.timesteps

    def step(self, batch: Batch, empty: Tensor) -> dict[str, Tensor]:
        """One update of the critic, then one of the denoiser; `empty` is (1, tokens, width)."""
        if not self.average.steps:
            self._calibrate_critic(batch)
        generated = self._generate(batch, empty)
        critic = self._step_critic(batch, generated.detach())
        scores = self._score(generated, batch.text).mean()
        distance = self._measure_distance(batch, empty)
        classified = self.classifier.measure_loss(generated, batch.owners)
        loss = generator_loss(scores) + self.options.anchor * distance + self.options.classifier * classified
        descend(loss, self.optimizer, self.denoiser, largest_norm=1.0)
        self.average.update()
        losses = {"critic": critic, "scores": scores, "distance": distance, "classifier": classified}
        return {name: loss.detach() for name, loss in losses.items()}

    def _generate(self, batch: Batch, empty: Tensor) -> Tensor:
        noise = torch.randn_like(batch.real)
        return denoise(self.denoiser, self.recipe, noise, batch.text, empty, self.options.learned_steps)

    def _score(self, latent: Tensor, text: Tensor) -> Tensor:
        with half_precision(self.device):
            return self.critic(latent, text).float()

    def _calibrate_critic(self, batch: Batch) -> None:
        with half_precision(self.device):
            self.critic.calibrate(batch.real, batch.text)
        average(list(self.critic.heads.buffers()))

    def _step_critic(self, batch: Batch, generated: Tensor) -> Tensor:
        """Real pictures under their neighbours' captions are false as well (Reed et al. 2016, algorithm 1)."""
        real, fake = self._score(batch.real, batch.text), self._score(generated, batch.text)
        wrong = self._score(batch.real, batch.text.roll(1, dims=0))
        loss = critic_loss(real, fake, wrong)
        descend(loss, self.critic_optimizer, self.critic.heads)
        return loss.detach()

    def _measure_distance(self, batch: Batch, empty: Tensor) -> Tensor:
        """Mean squared distance from the known predictions, on noisy real latents.

        A caption in another phrasing shall mean what the known one does.
        """
        timestep = self.timesteps[torch.randint(len(self.timesteps), (len(batch.real),), device=self.device)]
        noisy = self.noising.add(batch.real, torch.randn_like(batch.real), timestep)
        dropped = torch.rand(len(noisy), 1, 1, device=self.device) < self.options.empty_share
        text, known = (torch.where(dropped, empty, each) for each in (batch.text, batch.known))
        with half_precision(self.device):
            velocity = self.denoiser(noisy, timestep, text, return_dict=False)[0].float()
            with torch.no_grad():
                wanted = self.known(noisy, timestep, known, return_dict=False)[0].float()
        moved = velocity - wanted
        coarse = functional.avg_pool2d(moved, COARSE_PX).square().mean()
        return moved.square().mean() - (1 - self.options.coarse) * coarse

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
            "denoiser": self.denoiser.state_dict(),
            "critic": self.critic.heads.state_dict(),  # calibration included
            "optimizers": [self.optimizer.state_dict(), self.critic_optimizer.state_dict()],
            "average": self.average.values,
            "average_steps": self.average.steps,
        }

    def restore(self, state: Checkpoint) -> None:
        """The inverse of `state`."""
        self.denoiser.load_state_dict(state["denoiser"])
        self.critic.heads.load_state_dict(state["critic"])
        for optimizer, kept in zip((self.optimizer, self.critic_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.average.values, self.average.steps = state["average"], state["average_steps"]


def _build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), betas=(0.0, 0.99), weight_decay=0.0)


def sharpen(
    lessons: Lessons, sharpening: Sharpening, out: Path, budget: Budget, sizes: DenoiserOptions, seed: int
) -> None:
    """Sharpen or go on; now and then, and at the end, write a checkpoint and the averaged weights (fp16) as `out`."""
    checkpoint = out.with_name(f"sharpen-{out.name}.pt")
    first = resume(sharpening, budget, checkpoint, sharpening.device)
    set_seed(seed + first)
    for step in budget.steps(first):
        sharpening.set_rates(step, budget.fraction)
        losses = sharpening.step(_draw(lessons, step, sizes), lessons.captions.empty(1))
        first = step + 1
        if step % 20 == 0 and is_leader():
            shown = " ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
            print(f"step {step} {budget.elapsed:.0f}s {shown}", flush=True)
        if first % WRITE_EVERY == 0 and is_leader():
            _write(sharpening, budget, checkpoint, out, first)
    if is_leader():
        _write(sharpening, budget, checkpoint, out, first)


def _draw(lessons: Lessons, step: int, sizes: DenoiserOptions) -> Batch:
    side, count = choose_crops(step, sizes)
    latent, owners = lessons.banks[side].draw(count)
    return Batch(latent.float(), *lessons.captions.draw_pairs(owners), owners)


def _write(sharpening: Sharpening, budget: Budget, checkpoint: Path, out: Path, step: int) -> None:
    keep(sharpening, budget, checkpoint, step)
    with sharpening.average.swapped():
        write_half(sharpening.denoiser, out)


def _build_critic(vae: AutoencoderTiny, denoiser: UNet2DConditionModel, device: torch.device) -> Critic:
    """As many maps of latents as of pictures: a critic of pictures alone leaves woven patterns."""
    latent_backbones = (LatentBackbone(copy_denoiser(denoiser), build_noising(device)) for _ in range(2))
    return Critic([PictureBackbone(vae), *latent_backbones], denoiser.config["cross_attention_dim"])


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
        "--classifier", type=float, default=usual.classifier, help="weight of the auxiliary classifier"
    )
    parser.add_argument("--peak-rate", type=float, default=usual.peak_rate)
    parser.add_argument("--seed", type=int, default=3, help="the denoiser's, to find its latents again")
    chosen = parser.parse_args()
    rank, device = join_ranks(), choose_device()
    variant, seed = VARIANTS[chosen.variant], chosen.seed + 1000 * rank
    sizes = DenoiserOptions(batch=chosen.batch, crops=chosen.crops)
    denoiser, vae = load_denoiser(chosen.parts / variant.folder), load_autoencoder(chosen.parts / "vae")
    lessons = build_lessons(chosen.shards, chosen.parts, sizes, device, seed)
    options = SharpenOptions(
        variant.learned_steps, chosen.anchor, classifier=chosen.classifier, peak_rate=chosen.peak_rate
    )
    recipe = replace(variant.recipe, guidance_scale=chosen.guidance_scale or variant.recipe.guidance_scale)
    set_seed(chosen.seed)  # the same critic on every rank
    critic = _build_critic(vae, denoiser, device)
    classifier = build_classifier(vae, lessons.banks[512], lessons.captions)
    sharpening = Sharpening(denoiser, critic, classifier, recipe, options, device)
    budget = Budget(chosen.seconds, chosen.call_seconds)
    sharpen(lessons, sharpening, chosen.out / variant.folder, budget, sizes, seed)
    leave_ranks()


if __name__ == "__main__":
    main()

"""Sharpen a denoiser: what it paints, decoded, must pass for real before a critic.

Adversarial fine-tuning in the manner of adversarial diffusion distillation (Sauer et al. 2023), but the steps of
the recipe are trained as one network, as in DRaFT (Clark et al. 2024): gradients of the finished picture flow
through the last of them. A fixed classifier asks that it be recognised as well (Odena et al. 2017). Critic and
classifier see through EfficientNet-Lite1; the measures see through Lite0.
"""

import argparse
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from training.augment import CropRange, balance, load_images, sample_crop
from training.critic import FeatureCritic, critic_loss, generator_loss
from training.dataset import Picture, read_folders
from training.denoiser import copy_denoiser, write_half
from training.diffusion import build_noising
from training.features import Features
from training.latents import Captions, encode_captions, encode_pixels, load_encoders
from training.measures import Probe, crop_real, extract, fit_probe
from training.progress import (
    Average,
    Budget,
    choose_device,
    half_precision,
    keep,
    learning_rate,
    resume,
    set_learning_rate,
)
from training.ranks import average_gradients, is_leader, join_ranks, leave_ranks
from training.sampling import FEW_STEPS, FULL, Recipe, denoise
from training.tint import add_tints

WRITE_EVERY = 250  # steps
COARSE_PX, COARSE_SHARE = 8, 0.1  # latent pixels


@dataclass(frozen=True, slots=True)
class SharpenOptions:
    """Sizes, rates and weights of a step."""

    batch: int = 32
    crops: int = 8_000
    side_px: int = 512
    learned_steps: int = 5  # the last ones of the recipe
    anchor: float = 50.0  # weight of staying near the known predictions
    named: float = 0.05  # weight of being recognised
    sure: float = 0.7  # probability of the own category from which on it counts as recognised
    empty_share: float = 0.1  # of the anchor's captions
    peak_rate: float = 5e-5
    critic_rate: float = 5e-4


@dataclass(frozen=True, slots=True)
class Variant:
    """Which denoiser is sharpened, and how it paints."""

    folder: str
    recipe: Recipe
    learned_steps: int


VARIANTS = {"few": Variant("unet", FEW_STEPS, FEW_STEPS.steps), "full": Variant("unet_full", FULL, 3)}


@dataclass(frozen=True, slots=True)
class Gallery:
    """Real crops, uint8 (N, 3, side, side), the picture of each, and each picture's category as a number."""

    crops: Tensor
    owners: Tensor
    labels: Tensor

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Random crops in [-1, 1] and their owners."""
        chosen = torch.randint(len(self.crops), (count,), device=self.crops.device)
        return self.crops[chosen].float().div(127.5).sub(1), self.owners[chosen]


def hang_gallery(
    pictures: list[Picture], labels: Tensor, options: SharpenOptions, device: torch.device, seed: int
) -> Gallery:
    """Native crops, categories balanced."""
    rng, images = random.Random(seed), load_images(pictures, device)
    owners = rng.choices(range(len(pictures)), weights=balance(pictures), k=options.crops)
    native = CropRange(low=1.0, high=1.0, native=1.0)
    crops = [
        sample_crop(images[owner], pictures[owner], options.side_px, native, rng)
        .add(1).mul(127.5).round().byte()
        for owner in owners
    ]  # fmt: skip
    return Gallery(torch.stack(crops), torch.tensor(owners, device=device), labels)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One batch: real crops in [-1, 1], (B, 3, side, side), and what they show.

    Attributes:
        heard: states of their captions in some dress; the same captions are painted.
        known: states of the dress that the denoiser knew best before, (B, tokens, width) both.
        labels: the classifier's columns, (B,).
    """

    real: Tensor
    heard: Tensor
    known: Tensor
    labels: Tensor


class Sharpening:
    """Denoiser, decoder, critic and classifier, and one update of both sides."""

    def __init__(
        self,
        denoiser: UNet2DConditionModel,
        vae: AutoencoderTiny,
        critic: FeatureCritic,
        probe: Probe,
        recipe: Recipe,
        options: SharpenOptions,
        device: torch.device,
    ) -> None:
        self.options, self.device, self.recipe = options, device, recipe
        self.vae, self.critic, self.probe = vae.to(device), critic.to(device), probe
        self.known = copy_denoiser(denoiser).to(device).requires_grad_(False)
        self.denoiser = denoiser.to(device).requires_grad_(True)
        self.optimizer = _build_optimizer(self.denoiser)
        self.critic_optimizer = _build_optimizer(self.critic.heads)
        self.average = Average(self.denoiser, decay=0.995)
        self.noising = build_noising(device)

    def step(self, lesson: Lesson, empty: Tensor) -> dict[str, Tensor]:
        """One update of the critic, then one of the denoiser; `empty` is (1, tokens, width)."""
        painted = self._paint(lesson, empty)
        real, seen = _cut_windows(lesson.real, painted)
        with half_precision(self.device):
            maps, features = self.critic.look(seen)
        judged = self._teach_critic(real, [each.detach() for each in maps], lesson.heard)
        with half_precision(self.device):
            scores = self.critic(maps, lesson.heard).float()
        unnamed = self._measure_doubt(features.float(), lesson.labels)
        distance = self._measure_distance(lesson, empty)
        loss = generator_loss(scores) + self.options.named * unnamed + self.options.anchor * distance
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.denoiser)
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimizer.step()
        self.average.update()
        losses = {"critic": judged, "scores": scores.mean(), "unnamed": unnamed, "distance": distance}
        return {name: loss.detach() for name, loss in losses.items()}

    def _paint(self, lesson: Lesson, empty: Tensor) -> Tensor:
        count, side = len(lesson.real), lesson.real.shape[-1] // 8
        noise = torch.randn(count, self.denoiser.config.in_channels, side, side, device=self.device)
        latent = denoise(self.denoiser, self.recipe, noise, lesson.heard, empty, self.options.learned_steps)
        with half_precision(self.device):
            return checkpoint(self._decode, latent, use_reentrant=False).float()

    def _decode(self, latent: Tensor) -> Tensor:
        return self.vae.decoder(latent / self.vae.config.scaling_factor)

    def _teach_critic(self, real: Tensor, painted: list[Tensor], text: Tensor) -> Tensor:
        with half_precision(self.device):
            maps, _ = self.critic.look(real)
            loss = critic_loss(self.critic(maps, text).float(), self.critic(painted, text).float())
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.critic.heads)
        self.critic_optimizer.step()
        return loss.detach()

    def _measure_doubt(self, features: Tensor, labels: Tensor) -> Tensor:
        """By how much the logarithm of the own category's probability falls short of `sure`."""
        own = self.probe.log_probabilities(features).gather(1, labels[:, None])
        return torch.relu(math.log(self.options.sure) - own).mean()

    def _measure_distance(self, lesson: Lesson, empty: Tensor) -> Tensor:
        """Mean squared distance from the known predictions, on noisy real latents.

        A caption in another dress shall mean what the known one does. What is coarse counts a tenth: colours
        and layout are for the critic to say, patterns that were not there are its weakness.
        """
        with torch.no_grad():
            latent = encode_pixels(self.vae, lesson.real)
        timestep = self._draw_timesteps(len(latent))
        noisy = self.noising.add(latent, torch.randn_like(latent), timestep)
        unheard = torch.rand(len(latent), 1, 1, device=self.device) < self.options.empty_share
        heard, known = (torch.where(unheard, empty, text) for text in (lesson.heard, lesson.known))
        with half_precision(self.device):
            velocity = self.denoiser(noisy, timestep, heard, return_dict=False)[0].float()
            with torch.no_grad():
                wanted = self.known(noisy, timestep, known, return_dict=False)[0].float()
        moved = velocity - wanted
        coarse = functional.avg_pool2d(moved, COARSE_PX).square().mean()
        return moved.square().mean() - (1 - COARSE_SHARE) * coarse

    def _draw_timesteps(self, count: int) -> Tensor:
        scheduler = self.recipe.build_scheduler()
        scheduler.set_timesteps(self.recipe.steps, device=self.device)
        return scheduler.timesteps[torch.randint(self.recipe.steps, (count,), device=self.device)]

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
            "critic": self.critic.heads.state_dict(),
            "optimizers": [self.optimizer.state_dict(), self.critic_optimizer.state_dict()],
            "average": self.average.values,
            "average_steps": self.average.steps,
        }

    def restore(self, state: dict[str, object]) -> None:
        """The inverse of `state`."""
        self.denoiser.load_state_dict(state["denoiser"])
        self.critic.heads.load_state_dict(state["critic"])
        for optimizer, kept in zip((self.optimizer, self.critic_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.average.values, self.average.steps = state["average"], state["average_steps"]


def _cut_windows(*pictures: Tensor) -> tuple[Tensor, ...]:
    """The same window of seven eighths of the side from all, elsewhere each time: nothing is learned of places."""
    side = pictures[0].shape[-1]
    window = max(32, side * 7 // 8 // 32 * 32)
    top, left = (random.randrange(side - window + 1) for _ in range(2))
    return tuple(each[..., top : top + window, left : left + window] for each in pictures)


def _build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), betas=(0.0, 0.99), weight_decay=0.0)


def load_parts(
    parts: Path,
    folder: str,
    pictures: list[Picture],
    recipe: Recipe,
    options: SharpenOptions,
    device: torch.device,
) -> tuple[Sharpening, CLIPTextModel, CLIPTokenizer]:
    """The denoiser in `parts/folder` before a new critic and a classifier of `pictures`, and what hears captions."""
    vae, text, tokenizer = load_encoders(parts, device)
    denoiser = UNet2DConditionModel.from_pretrained(parts / folder, torch_dtype=torch.float32)
    features = Features("efficientnet-lite1").to(device, memory_format=torch.channels_last)
    critic = FeatureCritic(features, text.config.hidden_size)
    crops = crop_real(pictures, device, every=True)
    probe = fit_probe(
        extract(features, [crop.image for crop in crops]), [crop.picture.category for crop in crops]
    )
    return Sharpening(denoiser, vae, critic, probe, recipe, options, device), text, tokenizer


def sharpen(
    gallery: Gallery, captions: Captions, sharpening: Sharpening, out: Path, budget: Budget, seed: int
) -> None:
    """Sharpen or go on; now and then, and at the end, write a checkpoint and the averaged weights (fp16) as `out`."""
    checkpoint = out.with_name(f"sharpen-{out.name}.pt")
    first = resume(sharpening, budget, checkpoint, sharpening.device)
    torch.manual_seed(seed + first)
    random.seed(seed + first)
    for step in budget.steps(first):
        real, owners = gallery.draw(sharpening.options.batch)
        sharpening.set_rates(step, budget.fraction)
        lesson = Lesson(real, *captions.draw_pairs(owners), gallery.labels[owners])
        losses = sharpening.step(lesson, captions.empty(1))
        first = step + 1
        if step % 20 == 0 and is_leader():
            shown = " ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
            print(f"step {step} {budget.elapsed:.0f}s {shown}", flush=True)
        if first % WRITE_EVERY == 0 and is_leader():
            _write(sharpening, budget, checkpoint, out, first)
    if is_leader():
        _write(sharpening, budget, checkpoint, out, first)


def _write(sharpening: Sharpening, budget: Budget, checkpoint: Path, out: Path, step: int) -> None:
    keep(sharpening, budget, checkpoint, step)
    with sharpening.average.swapped():
        write_half(sharpening.denoiser, out)


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
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--crops", type=int, default=usual.crops)
    parser.add_argument("--side", type=int, default=usual.side_px, help="of a crop, in pixels")
    parser.add_argument("--anchor", type=float, default=usual.anchor)
    parser.add_argument("--named", type=float, default=usual.named)
    parser.add_argument("--peak-rate", type=float, default=usual.peak_rate)
    parser.add_argument("--seed", type=int, default=5)
    chosen = parser.parse_args()
    rank, device = join_ranks(), choose_device()
    variant, seed = VARIANTS[chosen.variant], chosen.seed + 1000 * rank
    options = SharpenOptions(
        batch=chosen.batch,
        crops=chosen.crops,
        side_px=chosen.side,
        learned_steps=variant.learned_steps,
        anchor=chosen.anchor,
        named=chosen.named,
        peak_rate=chosen.peak_rate,
    )
    recipe = replace(variant.recipe, guidance_scale=chosen.guidance_scale or variant.recipe.guidance_scale)
    real = [picture for picture in read_folders(chosen.shards) if not picture.held_out]
    torch.manual_seed(chosen.seed)  # the same critic on every rank
    sharpening, text, tokenizer = load_parts(chosen.parts, variant.folder, real, recipe, options, device)
    pictures = add_tints(real, 1, random.Random(seed))
    captions = encode_captions(text, tokenizer, pictures, device, seed)
    labels = sharpening.probe.label([picture.category for picture in pictures])
    gallery = hang_gallery(pictures, labels, options, device, seed)
    budget = Budget(chosen.seconds, chosen.call_seconds)
    sharpen(gallery, captions, sharpening, chosen.out / variant.folder, budget, seed)
    leave_ranks()


if __name__ == "__main__":
    main()

"""Train the AutoencoderTiny: pictures to latents at an eighth of the size, and back."""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn

from training.augment import CropRange, cut_crops, draw_windows
from training.critic import PatchCritic, critic_loss, generator_loss
from training.dataset import Picture, read_folders
from training.detail import detail_distance
from training.features import FeaturePair, perceptual_distance
from training.measures import crop_real, measure_psnr
from training.parts import load_autoencoder, place, save_half
from training.progress import (
    Average,
    Budget,
    Checkpoint,
    begin_with,
    choose_device,
    compile_for_one_shape,
    descend,
    half_precision,
    keep,
    learning_rate,
    resume,
    set_learning_rate,
    set_seed,
)
from training.ranks import is_leader, join_ranks, leave_ranks
from training.sheet import draw_sheet

ZOOM = CropRange(low=0.6, high=1.0, native=0.7)
CRITIC_FROM = 0.6  # share of the budget after which the critic counts


@dataclass(frozen=True, slots=True)
class AutoencoderOptions:
    """Sizes of the network and of a step."""

    channels: int = 24
    width: int = 64
    encoder_blocks: tuple[int, ...] = (0, 2, 3, 4)
    decoder_blocks: tuple[int, ...] = (4, 3, 2, 0)
    batch: int = 64
    side_px: int = 256
    crops: int = 12_000
    disturbed: float = 0.1  # share of steps with halved latents, and of steps with dropped channels
    noise: float = 0.08  # at most, of the latents' deviation; it fades with the budget
    peak_rate: float = 6e-4
    decoder_only: bool = False  # latents stay as they are
    perceptual: float = 0.1  # weight of the perceptual distance
    critic: float = 0.005  # weight of the critic's scores
    detail: float = 0.0  # weight of having as much fine detail everywhere
    compile: bool = False


def build_autoencoder(options: AutoencoderOptions) -> AutoencoderTiny:
    """No GroupNorm, and a decoder that sees 20 latent pixels to each side: tiles decode exactly with a halo."""
    return AutoencoderTiny(
        latent_channels=options.channels,
        encoder_block_out_channels=(options.width,) * 4,
        decoder_block_out_channels=(options.width,) * 4,
        num_encoder_blocks=options.encoder_blocks,
        num_decoder_blocks=options.decoder_blocks,
    )


class AutoencoderTraining:
    """The networks of this stage and one step of them."""

    def __init__(self, options: AutoencoderOptions, device: torch.device, start: Path | None) -> None:
        self.options = options
        model = build_autoencoder(options)
        if start:
            known = load_autoencoder(start)
            begin_with(model, known)
            _set_scaling_factor(model, known.config["scaling_factor"])
        model.encoder.requires_grad_(not options.decoder_only)
        self.model = place(model, device, torch.channels_last)
        self.features = place(FeaturePair(), device, torch.channels_last)
        self.critic = place(PatchCritic(3, 48, (2, 2, 2, 1)), device, torch.channels_last)
        fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=fused
        )
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), lr=3e-4, betas=(0.5, 0.95), fused=fused
        )
        self.average = Average(self.model, decay=0.999)
        self.encode, self.decode, self.distance = model.encoder.forward, model.decoder.forward, self._distance
        if options.compile:
            self.encode, self.decode = map(compile_for_one_shape, (self.encode, self.decode))
            self.distance = compile_for_one_shape(self.distance)
        self.device = device

    def step(self, image: Tensor, fraction: float, rng: random.Random) -> dict[str, Tensor]:
        """One update of the autoencoder, and of the critic once it counts."""
        half_size = rng.random() < self.options.disturbed
        with half_precision(self.device):
            latent = self.encode(image)
            restored, target = self._restore(latent, image, half_size, fraction, rng)
            losses = self._losses(latent, restored, target)
            if self._uses_critic(fraction) and not half_size:
                losses["critic"] = self.options.critic * generator_loss(self.critic(restored))
            total = torch.stack(list(losses.values())).sum()
        descend(total, self.optimizer, self.model, largest_norm=1.0)
        self.average.update()
        if self._uses_critic(fraction + 0.05) and not half_size:  # it learns before it counts
            self._step_critic(target, restored.detach())
        return {name: loss.detach() for name, loss in losses.items()}

    def _uses_critic(self, fraction: float) -> bool:
        return bool(self.options.critic) and fraction > CRITIC_FROM

    def _restore(
        self, latent: Tensor, image: Tensor, half_size: bool, fraction: float, rng: random.Random
    ) -> tuple[Tensor, Tensor]:
        """Decode a disturbed latent.

        Noise makes the decoder forgive the denoiser; dropped channels put coarse things first (structured latents,
        DC-AE 1.5, Chen et al. 2025); halved latents must decode to halved pictures (scale equivariance, Skorokhodov
        et al. 2025): both make latents that a small denoiser learns sooner.
        """
        most = self.options.noise * (1 - fraction) * latent.detach().float().std()
        strength = torch.rand(len(latent), 1, 1, 1, device=latent.device) * most
        latent = latent + strength * torch.randn_like(latent)
        if rng.random() < self.options.disturbed:
            kept = rng.choice((4, 8, 16))
            latent = torch.cat([latent[:, :kept], torch.zeros_like(latent[:, kept:])], dim=1)
        if half_size:
            latent, image = nn.functional.avg_pool2d(latent, 2), nn.functional.avg_pool2d(image, 2)
        return self.decode(latent), image

    def _losses(self, latent: Tensor, restored: Tensor, target: Tensor) -> dict[str, Tensor]:
        difference = (restored - target).float()
        losses = {
            "absolute": difference.abs().mean(),
            "square": 10.0 * difference.square().mean(),
            "tone": 2.0 * difference.mean(dim=(2, 3)).abs().mean(),
        }
        if self.options.perceptual:
            losses["perceptual"] = self.options.perceptual * self.distance(restored, target)
        if self.options.detail:
            losses["detail"] = self.options.detail * detail_distance(restored.float(), target.float())
        if not self.options.decoder_only:
            spread = (latent.float().square().mean() - 1).square()
            losses["latent"] = 0.01 * spread + 0.01 * _offset(latent)
        return losses

    def _distance(self, restored: Tensor, target: Tensor) -> Tensor:
        return perceptual_distance(self.features, restored, target).mean()

    def _step_critic(self, real: Tensor, fake: Tensor) -> None:
        with half_precision(self.device):
            loss = critic_loss(self.critic(real), self.critic(fake))
        descend(loss, self.critic_optimizer, self.critic)

    def state(self) -> dict[str, object]:
        """Everything that a later run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "average": self.average.values,
        }

    def restore(self, state: Checkpoint) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.average.values = state["average"]


def _offset(latent: Tensor) -> Tensor:
    """Mean square of the channels' means: noise has none, so latents should have little."""
    return latent.float().mean(dim=(0, 2, 3)).square().mean()


def train(
    folders: list[Path],
    out: Path,
    budget: Budget,
    options: AutoencoderOptions,
    seed: int,
    start: Path | None = None,
) -> None:
    """Train (from the weights in `start`, if given), checkpoint, and write the averaged weights as `out/vae/` (fp16, latents of unit deviation)."""
    rank, device = join_ranks(), choose_device()
    set_seed(seed)
    pictures = [picture for picture in read_folders(folders) if picture.for_training]
    rng = random.Random(seed)
    training = AutoencoderTraining(options, device, start)
    crops = cut_crops(pictures, options.crops, ZOOM, random.Random(seed + rank), device)
    set_seed(seed + rank)
    first = resume(training, budget, out / "autoencoder.pt", device)
    for step in budget.steps(first):
        rate = learning_rate(options.peak_rate, step, budget.fraction, decay_from=0.4)
        set_learning_rate(training.optimizer, rate)
        image = draw_windows(crops, options.batch, options.side_px, rng)
        losses = training.step(image, budget.fraction, rng)
        if step % 100 == 0 and is_leader():
            shown = " ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
            print(f"step {step} {budget.elapsed:.0f}s {shown}", flush=True)
        first = step + 1
    if not is_leader():
        return
    keep(training, budget, out / "autoencoder.pt", first)
    with training.average.swapped():
        if not options.decoder_only:
            scale_latents(training.model, draw_windows(crops, options.batch, options.side_px, rng))
        _report(training.model, [p for p in read_folders(folders) if p.held_out], out, device)
        save_half(training.model, out / "vae")


@torch.no_grad()
def scale_latents(model: AutoencoderTiny, batch: Tensor) -> None:
    """Give the latents of this batch (B, 3, H, W) unit deviation, by the scaling factor, and no channel too little."""
    raise_faint_channels(model, model.encoder(batch).float())
    latent = model.encoder(batch).float()
    _set_scaling_factor(model, round(1 / latent.std().item(), 4))
    means = ", ".join(f"{value:.2f}" for value in latent.mean(dim=(0, 2, 3)).tolist())
    spreads = ", ".join(f"{value:.2f}" for value in latent.std(dim=(0, 2, 3)).tolist())
    print(f"latent scaling {model.config['scaling_factor']}; means {means}; deviations {spreads}")


@torch.no_grad()
def raise_faint_channels(model: AutoencoderTiny, latent: Tensor, least: float = 0.75) -> None:
    """Give faint channels of the latent (B, C, h, w) that deviation, and take it back where the decoder begins.

    A sampler's last step starts from a noise of about 0.2, and what is much fainter than that comes out
    blurred. The decoder bends its input (3 tanh(z / 3)), hence a little more than before: 0.17 dB, which
    training the decoder alone brings back.
    """
    factor = (least / latent.std(dim=(0, 2, 3))).clamp(min=1)
    last = [layer for layer in model.encoder.layers if isinstance(layer, nn.Conv2d)][-1]
    first = next(layer for layer in model.decoder.layers if isinstance(layer, nn.Conv2d))
    last.weight.mul_(factor.view(-1, 1, 1, 1))
    if last.bias is not None:
        last.bias.mul_(factor)
    first.weight.div_(factor.view(1, -1, 1, 1))


def _set_scaling_factor(model: AutoencoderTiny, value: float) -> None:
    model.register_to_config(scaling_factor=value)  # pyright: ignore[reportUnknownMemberType]


@torch.no_grad()
def _report(model: AutoencoderTiny, held_out: list[Picture], out: Path, device: torch.device) -> None:
    """Median PSNR and a sheet of held-out crops: the original above what comes back."""
    crops = crop_real(held_out, device, every=False)
    restored = [model.decoder(model.encoder(crop.image[None])).clamp(-1, 1) for crop in crops]
    pairs = [(crop.image[None], back) for crop, back in zip(crops, restored, strict=True)]
    decibels = torch.cat([measure_psnr(back, image) for image, back in pairs])
    print(f"held out: median PSNR {decibels.median():.2f} dB")
    shown = range(0, len(pairs), max(1, len(pairs) // 10))
    images = [image for index in shown for image in (pairs[index][0][0], pairs[index][1][0])]
    labels = [text for index in shown for text in (crops[index].picture.caption, f"{decibels[index]:.1f} dB")]
    draw_sheet(images, labels, 4, 400, out / "autoencoder.jpg")


def main() -> None:
    """Command line: `python -m training.autoencoder SHARD [SHARD ...] --out OUT --seconds 360`."""
    parser, usual = argparse.ArgumentParser(description=__doc__), AutoencoderOptions()
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--call-seconds", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=256, help="of a step's windows, in pixels")
    parser.add_argument("--crops", type=int, default=12_000)
    parser.add_argument("--peak-rate", type=float, default=6e-4)
    parser.add_argument("--perceptual", type=float, default=usual.perceptual, help="weight, 0 for none")
    parser.add_argument("--critic", type=float, default=usual.critic, help="weight, 0 for none")
    parser.add_argument("--detail", type=float, default=usual.detail, help="weight, 0 for none")
    parser.add_argument("--decoder-only", action="store_true", help="latents unchanged")
    parser.add_argument("--begin-with", type=Path, help="vae folder whose weights to begin with")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    sizes = AutoencoderOptions(
        batch=options.batch,
        side_px=options.side,
        crops=options.crops,
        peak_rate=options.peak_rate,
        disturbed=0.0 if options.decoder_only else 0.1,
        decoder_only=options.decoder_only,
        perceptual=options.perceptual,
        critic=options.critic,
        detail=options.detail,
        compile=options.compile,
    )
    budget = Budget(options.seconds, options.call_seconds)
    train(options.shards, options.out, budget, sizes, options.seed, options.begin_with)
    leave_ranks()


if __name__ == "__main__":
    main()

"""Train the denoiser on the bank of latents."""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from training.augment import load_images
from training.dataset import read_folders
from training.diffusion import Noising, build_noising
from training.latents import Bank, Captions, encode_bank, encode_captions
from training.parts import load_denoiser, load_encoders, place, write_half
from training.progress import (
    Average,
    Budget,
    Checkpoint,
    begin_with,
    choose_device,
    compile_for,
    descend,
    half_precision,
    keep,
    learning_rate,
    load_checkpoint,
    resume,
    save_checkpoint,
    set_learning_rate,
    set_seed,
)
from training.ranks import count_ranks, is_leader, join_ranks, leave_ranks
from training.tint import add_tints


@dataclass(frozen=True, slots=True)
class DenoiserOptions:
    """Sizes of the network, of the bank and of a step."""

    widths: tuple[int, ...] = (96, 128, 192)
    crops: int = 24_000
    batch: int = 256
    large_every: int = 8  # one step in eight is on 1024 px crops, an eighth as many; 0: none
    empty_share: float = 0.1
    tints: int = 1  # painted versions of each picture of a made thing
    views: float | None = None  # share of the crops that shall be photographs of views
    peak_rate: float = 8e-4
    compile: bool = False
    layout: torch.memory_format = torch.channels_last  # which one is faster depends on the kernels of the day


def build_denoiser(channels: int, text_width: int, widths: tuple[int, ...]) -> UNet2DConditionModel:
    """Convolutions alone at full size; attention to itself and the text at a half and a quarter."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=tuple(max(1, width // 32) for width in widths),  # pyright: ignore[reportArgumentType]
        norm_num_groups=16,
        use_linear_projection=True,
    )


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a denoiser learns from: crops by their side in pixels, and captions."""

    banks: dict[int, Bank]
    captions: Captions

    def draw_uncut(self, count: int) -> Tensor:
        """Random pictures, (count,), of which there are captions and no crops."""
        if not count:
            return self.banks[512].owners[:0]
        uncut = torch.ones(len(self.captions.views), device=self.captions.views.device)
        for bank in self.banks.values():
            uncut[bank.owners] = 0
        return torch.multinomial(uncut, count, replacement=True)


def build_lessons(
    folders: list[Path], encoders: Path, options: DenoiserOptions, device: torch.device, seed: int
) -> Lessons:
    """Encode once and keep it in `encoders/` for the next run; every rank has crops of its own."""
    path = encoders / f"lessons-{seed}.pt"
    kept = load_checkpoint(path, device)
    if kept is not None:
        banks = {side: Bank(*bank) for side, bank in kept["banks"].items()}
        return Lessons(banks, Captions(*kept["captions"]))
    lessons = _encode_lessons(folders, encoders, options, device, seed)
    banks = {side: (bank.latents, bank.owners) for side, bank in lessons.banks.items()}
    captions = lessons.captions.states, lessons.captions.views, lessons.captions.categories
    save_checkpoint(path, {"banks": banks, "captions": captions})
    return lessons


def _encode_lessons(
    folders: list[Path], encoders: Path, options: DenoiserOptions, device: torch.device, seed: int
) -> Lessons:
    vae, text, tokenizer = load_encoders(encoders, device)
    real = [picture for picture in read_folders(folders) if picture.for_training]
    pictures = add_tints(real, options.tints, random.Random(seed))
    images = load_images(pictures, device)
    counts = {512: options.crops // count_ranks()}
    if options.large_every:
        counts[1024] = options.crops // 8 // count_ranks()
    banks = {
        side: encode_bank(vae, images, pictures, side, max(1, count), seed + side, options.views)
        for side, count in counts.items()
    }
    return Lessons(banks, encode_captions(text, tokenizer, pictures, device, seed))


class DenoiserTraining:
    """The network, its optimizer and one step."""

    def __init__(self, model: UNet2DConditionModel, options: DenoiserOptions, device: torch.device) -> None:
        self.options, self.device = options, device
        self.model = place(model, device, options.layout)
        fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=fused
        )
        self.average = Average(model, decay=0.999)
        self.noising: Noising = build_noising(device)
        self.predict = compile_for(64, self._predict, really=options.compile)

    def _predict(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.model(noisy, timestep, text, return_dict=False)[0]

    def step(self, latent: Tensor, text: Tensor) -> Tensor:
        """One update."""
        latent = latent.float().contiguous(memory_format=self.options.layout)
        noise = torch.randn_like(latent)
        timestep = torch.randint(1000, (len(latent),), device=self.device)
        noisy, target = (
            self.noising.add(latent, noise, timestep),
            self.noising.velocity(latent, noise, timestep),
        )
        with half_precision(self.device):
            velocity = self.predict(noisy, timestep, text)
        errors = (velocity.float() - target).square().mean(dim=(1, 2, 3))
        loss = (self.noising.weight(timestep) * errors).mean()
        descend(loss, self.optimizer, self.model, largest_norm=1.0)
        self.average.update()
        return loss.detach()

    def state(self) -> dict[str, object]:
        """Everything that a later run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "average_steps": self.average.steps,
        }

    def restore(self, state: Checkpoint) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values, self.average.steps = state["average"], state["average_steps"]


def train(
    lessons: Lessons,
    out: Path,
    budget: Budget,
    options: DenoiserOptions,
    seed: int,
    rank: int,
    start: Path | None = None,
) -> None:
    """Train (from the weights in `start`, if given) or go on, checkpoint, and write the averaged weights as `out/unet_full/` (fp16)."""
    native = lessons.banks[512].latents
    set_seed(seed)
    model = build_denoiser(native.shape[1], lessons.captions.states.shape[2], options.widths)
    if start:
        begin_with(model, load_denoiser(start))
    training = DenoiserTraining(model, options, native.device)
    first = resume(training, budget, out / "denoiser.pt", native.device)
    set_seed(seed + first + 1000 * rank)
    for step in budget.steps(first):
        side, count = choose_crops(step, options)
        latent, owners = lessons.banks[side].draw(count)
        set_learning_rate(
            training.optimizer, learning_rate(options.peak_rate, step, budget.fraction, decay_from=0.6)
        )
        loss = training.step(latent, lessons.captions.draw(owners, options.empty_share))
        if step % 100 == 0 and is_leader():
            print(f"step {step} {budget.elapsed:.0f}s side {side} loss {loss.item():.4f}", flush=True)
        first = step + 1
    if not is_leader():
        return
    keep(training, budget, out / "denoiser.pt", first)
    with training.average.swapped():
        write_half(training.model, out / "unet_full")


def choose_crops(step: int, options: DenoiserOptions) -> tuple[int, int]:
    """A step's bank and number of crops."""
    if options.large_every and step % options.large_every == options.large_every - 1:
        return 1024, max(1, options.batch // 8)
    return 512, options.batch


def main() -> None:
    """Command line: `python -m training.denoiser SHARD [SHARD ...] --out OUT --seconds 660`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder with vae/, text_encoder/ and tokenizer/"
    )
    parser.add_argument("--seconds", type=float, default=660)
    parser.add_argument("--call-seconds", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--crops", type=int, default=24_000)
    parser.add_argument("--begin-with", type=Path, help="unet folder whose weights to begin with")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--plain-layout", action="store_true", help="NCHW in place of channels last")
    chosen = parser.parse_args()
    options = DenoiserOptions(
        batch=chosen.batch,
        crops=chosen.crops,
        compile=chosen.compile,
        layout=torch.contiguous_format if chosen.plain_layout else torch.channels_last,
    )
    rank, device = join_ranks(), choose_device()
    lessons = build_lessons(chosen.shards, chosen.out, options, device, chosen.seed + 1000 * rank)
    sizes = {side: len(bank.latents) for side, bank in lessons.banks.items()}
    print(f"rank {rank}: latents by side {sizes}", flush=True)
    budget = Budget(chosen.seconds, chosen.call_seconds)
    train(lessons, chosen.out, budget, options, chosen.seed, rank, chosen.begin_with)
    leave_ranks()


if __name__ == "__main__":
    main()

"""Distil the denoiser to few steps without guidance: distribution matching (DMD2, Yin et al. 2024).

The student paints in four to eight steps. A second network, the follower, keeps learning what the student's pictures
look like under noise; the difference between its opinion and the guided teacher's is the student's gradient. A small
critic of real latents sharpens it.
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call

from training.critic import PatchCritic, generator_loss, smooth_critic_loss
from training.denoiser import DenoiserOptions, Lessons, build_lessons, write_half
from training.diffusion import build_noising
from training.progress import (
    Average,
    Budget,
    choose_device,
    half_precision,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
    set_learning_rate,
)
from training.sampling import build_few_step_scheduler

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """Sizes and rates of a step."""

    batch: int = 128
    large_every: int = 8  # one step in eight is on 1024 px latents
    guidance_scale: float = 2.5
    follower_updates: int = 2
    critic_share: float = 0.3  # length of the critic's gradient beside the teacher's
    critic_from: float = 0.2
    empty_share: float = 0.05
    peak_rate: float = 2e-4
    follower_rate: float = 3e-4
    step_counts: tuple[int, ...] = (4, 4, 4, 5, 6, 8)
    compile: bool = False
    layout: torch.memory_format = torch.channels_last


class Distillation:
    """Student, follower, critic, and one round of their updates."""

    def __init__(self, teacher: UNet2DConditionModel, options: DistillOptions, device: torch.device) -> None:
        self.options, self.device = options, device
        self.network = teacher.to(device, memory_format=options.layout).requires_grad_(False)
        self.teacher: Weights = {name: weight.detach().clone() for name, weight in teacher.named_parameters()}
        self.student, self.follower = self._copy(), self._copy()
        self.critic = PatchCritic(teacher.config.in_channels, 96, (2, 2, 1)).to(device)
        self.optimizer = self._optimize(list(self.student.parameters()), options.peak_rate)
        self.follower_optimizer = self._optimize(list(self.follower.parameters()), options.follower_rate)
        self.critic_optimizer = self._optimize(list(self.critic.parameters()), 2e-4)
        self.average = Average(self.student, decay=0.995)
        self.noising = build_noising(device)
        self.compiled: Callable[..., Tensor] = partial(torch.compile, dynamic=False)(self._call)
        self.schedules = {count: _list_timesteps(count) for count in set(options.step_counts)}

    def _copy(self) -> UNet2DConditionModel:
        copy = UNet2DConditionModel.from_config(self.network.config)
        copy.load_state_dict(self.network.state_dict())
        return copy.to(self.device, memory_format=self.options.layout)

    def _optimize(self, parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
        fused = self.device.type == "cuda"
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.0, 0.99), weight_decay=0.01, fused=fused)

    def _call(self, weights: Weights, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return functional_call(self.network, weights, (noisy, timestep, text), {"return_dict": False})[0]

    def predict(self, weights: Weights, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """v of one of the three networks: they differ in their weights alone, so they share one compiled graph."""
        call = self.compiled if self.options.compile and noisy.shape[-1] == 64 else self._call
        with half_precision(self.device):
            return call(weights, noisy, timestep, text).float()

    def clean(self, weights: Weights, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The clean latent that a network believes in."""
        return self.noising.clean(noisy, self.predict(weights, noisy, timestep, text), timestep)

    def round(self, text: Tensor, empty: Tensor, real: Tensor, fraction: float, rng: random.Random) -> Tensor:
        """Student, follower and critic, one after another; the length of the matching gradient."""
        noisy, timestep = self._simulate(torch.randn_like(real), text, rng)
        painted = self.clean(dict(self.student.named_parameters()), noisy, timestep, text)
        gradient, distance = self._match(painted.detach(), text, empty)
        if fraction > self.options.critic_from:
            gradient = gradient + self._sharpen(painted.detach(), gradient)
        self._step(self.optimizer, (painted * gradient).sum() / len(painted), self.student)
        self.average.update()
        for _ in range(self.options.follower_updates):
            self._follow(painted.detach(), text)
        if fraction > self.options.critic_from / 2:
            self._judge(painted.detach(), real)
        return distance

    @torch.no_grad()
    def _simulate(self, latent: Tensor, text: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Walk the student's own way down to a random one of its steps."""
        schedule = self.schedules[rng.choice(self.options.step_counts)]
        stop = rng.randrange(len(schedule))
        weights = dict(self.student.named_parameters())
        for index in range(stop):
            timestep = torch.full((len(latent),), schedule[index], device=self.device)
            painted = self.clean(weights, latent, timestep, text)
            latent = self.noising.add(
                painted, torch.randn_like(latent), torch.full_like(timestep, schedule[index + 1])
            )
        return latent, torch.full((len(latent),), schedule[stop], device=self.device)

    @torch.no_grad()
    def _match(self, painted: Tensor, text: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the two scores' difference, scaled as in DMD (Yin et al. 2023, equations 7 and 8)."""
        timestep = torch.randint(20, 981, (len(painted),), device=self.device)
        noisy = self.noising.add(painted, torch.randn_like(painted), timestep)
        plain = self.clean(self.teacher, noisy, timestep, empty)
        guided = plain + self.options.guidance_scale * (
            self.clean(self.teacher, noisy, timestep, text) - plain
        )
        followed = self.clean(dict(self.follower.named_parameters()), noisy, timestep, text)
        scale = (painted - guided).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-4)
        gradient = (followed - guided) / scale
        return gradient / painted[0].numel(), gradient.abs().mean()

    def _sharpen(self, painted: Tensor, beside: Tensor) -> Tensor:
        """The critic's gradient, as long as a share of the other one."""
        painted = painted.requires_grad_(True)
        with half_precision(self.device):
            loss = generator_loss(self.critic(self._blur_with_noise(painted)))
        (gradient,) = torch.autograd.grad(loss, painted)
        wanted = self.options.critic_share * beside.flatten(1).norm(dim=1)
        ratio = wanted / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        return gradient * ratio.view(-1, 1, 1, 1)

    def _blur_with_noise(self, latent: Tensor) -> Tensor:
        """A little noise, so that the critic cannot tell them apart by traces alone."""
        timestep = torch.randint(0, 300, (len(latent),), device=self.device)
        return self.noising.add(latent, torch.randn_like(latent), timestep)

    def _follow(self, painted: Tensor, text: Tensor) -> None:
        noise, timestep = torch.randn_like(painted), torch.randint(1000, (len(painted),), device=self.device)
        noisy, target = (
            self.noising.add(painted, noise, timestep),
            self.noising.velocity(painted, noise, timestep),
        )
        velocity = self.predict(dict(self.follower.named_parameters()), noisy, timestep, text)
        self._step(self.follower_optimizer, (velocity - target).square().mean(), self.follower)

    def _judge(self, painted: Tensor, real: Tensor) -> None:
        with half_precision(self.device):
            scores = [self.critic(self._blur_with_noise(latent)) for latent in (real, painted)]
            loss = smooth_critic_loss(*scores)
        self._step(self.critic_optimizer, loss, self.critic)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor, module: torch.nn.Module) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    def state(self) -> dict[str, object]:
        """What a later run needs to go on; the optimizers start anew."""
        modules = {"student": self.student, "follower": self.follower, "critic": self.critic}
        return {name: module.state_dict() for name, module in modules.items()} | {
            "average": self.average.values
        }

    def restore(self, state: dict[str, object]) -> None:
        """The inverse of `state`."""
        for name in ("student", "follower", "critic"):
            getattr(self, name).load_state_dict(state[name])
        self.average.values, self.average.steps = state["average"], 1000


def _list_timesteps(count: int) -> list[int]:
    scheduler = build_few_step_scheduler()
    scheduler.set_timesteps(count)
    return [int(timestep) for timestep in scheduler.timesteps]


def distill(lessons: Lessons, out: Path, budget: Budget, options: DistillOptions, seed: int) -> None:
    """Distil `out/unet_full/` and write the student's averaged weights as `out/unet/` (fp16)."""
    device = lessons.small.latents.device
    teacher = UNet2DConditionModel.from_pretrained(out / "unet_full", torch_dtype=torch.float32)
    distillation = Distillation(teacher, options, device)
    first = _resume(distillation, budget, out / "distill.pt", device)
    torch.manual_seed(seed + first)
    rng = random.Random(seed + first)
    for step in budget.steps(first):
        large = step % options.large_every == options.large_every - 1
        bank, count = (lessons.large, max(1, options.batch // 4)) if large else (lessons.small, options.batch)
        real, owners = bank.draw(count)
        real = real.float().contiguous(memory_format=options.layout)
        rate = learning_rate(options.peak_rate, step, budget.fraction, warmup=50)
        set_learning_rate(distillation.optimizer, rate)
        text = lessons.captions.draw(owners, options.empty_share)
        distance = distillation.round(text, lessons.captions.empty(count), real, budget.fraction, rng)
        if step % 50 == 0:
            print(f"step {step} {budget.elapsed:.0f}s gradient {distance.item():.4f}", flush=True)
        first = step + 1
    save_checkpoint(out / "distill.pt", distillation.state() | {"step": first, "spent": budget.elapsed})
    with distillation.average.swapped():
        write_half(distillation.student, out / "unet")


def _resume(distillation: Distillation, budget: Budget, path: Path, device: torch.device) -> int:
    state = load_checkpoint(path, device)
    if state is None:
        return 0
    distillation.restore(state)
    budget.spent = state["spent"]
    return state["step"]


def main() -> None:
    """Command line: `python -m training.distill SHARD [SHARD ...] --out OUT --seconds 300`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder with the encoders and unet_full/")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--call-seconds", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--crops", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--plain-layout", action="store_true", help="NCHW in place of channels last")
    chosen = parser.parse_args()
    sizes = DenoiserOptions(crops=chosen.crops, large_crops=max(1, chosen.crops // 8))
    lessons = build_lessons(chosen.shards, chosen.out, sizes, choose_device(), chosen.seed)
    layout = torch.contiguous_format if chosen.plain_layout else torch.channels_last
    options = DistillOptions(batch=chosen.batch, compile=chosen.compile, layout=layout)
    distill(lessons, chosen.out, Budget(chosen.seconds, chosen.call_seconds), options, chosen.seed)


if __name__ == "__main__":
    main()

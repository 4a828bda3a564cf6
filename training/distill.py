"""Distil the denoiser to few steps without guidance: one step of the student for several guided ones of the teacher.

Progressive distillation (Salimans & Ho 2022) of all steps at once, with the guidance taken in (Meng et al. 2023).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from training.denoiser import DenoiserOptions, Lessons, build_lessons
from training.diffusion import build_noising
from training.latents import Bank, Captions
from training.parts import copy_denoiser, load_denoiser, place, require_part, write_half
from training.progress import (
    Average,
    Budget,
    Checkpoint,
    choose_device,
    compile_for,
    descend,
    half_precision,
    keep,
    learning_rate,
    resume,
    set_learning_rate,
    set_seed,
)
from training.ranks import is_leader, join_ranks, leave_ranks
from training.sampling import FEW_STEPS, FULL


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """Sizes and rates of a step."""

    batch: int = 128
    large_every: int = 8  # one step in eight is on 1024 px crops, an eighth as many
    steps: int = FEW_STEPS.steps
    teacher_steps: int = 3  # for each of the student's
    guidance_scale: float = FULL.guidance_scale
    view_scale: float = 1.5  # for landscapes and skies, which guidance empties and does not make clearer
    empty_share: float = 0.05
    peak_rate: float = 3e-4
    compile: bool = False
    layout: torch.memory_format = torch.channels_last


@dataclass(frozen=True, slots=True)
class Task:
    """What a batch is distilled from.

    Attributes:
        real: latents, (B, C, side, side).
        text: states of their captions in some phrasing, which the student is given.
        known: states of the phrasing that the teacher knows best and is given, (B, tokens, width) both.
        empty: of the empty caption, (1, tokens, width).
        scale: the teacher's guidance scales, (B,).
    """

    real: Tensor
    text: Tensor
    known: Tensor
    empty: Tensor
    scale: Tensor


class Distillation:
    """Teacher, student, and one update."""

    def __init__(
        self,
        teacher: UNet2DConditionModel,
        options: DistillOptions,
        device: torch.device,
        start: UNet2DConditionModel | None = None,
    ) -> None:
        self.options, self.device = options, device
        self.teacher = place(teacher, device, options.layout).eval().requires_grad_(False)
        self.student = place(copy_denoiser(start or teacher), device, options.layout)
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
        )
        self.average = Average(self.student, decay=0.998)
        self.noising = build_noising(device)
        self.ask_teacher, self.ask_student = (
            compile_for(64, ask, really=options.compile) for ask in (self._ask_teacher, self._ask_student)
        )

    def _ask_teacher(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.teacher(noisy, timestep, text, return_dict=False)[0]

    def _ask_student(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.student(noisy, timestep, text, return_dict=False)[0]

    def step(self, task: Task) -> Tensor:
        """One update: from a noisy latent, where the teacher arrives in several steps, in one."""
        index = torch.randint(self.options.steps, (len(task.real),), device=self.device)
        start = self._timestep(index.float())
        noisy = self.noising.add(task.real, torch.randn_like(task.real), start)
        target = self._lead(noisy, index, task)
        with half_precision(self.device):
            velocity = self.ask_student(noisy, start, task.text)
        loss = (velocity.float() - target).square().mean()
        descend(loss, self.optimizer, self.student, largest_norm=1.0)
        self.average.update()
        return loss.detach()

    @torch.no_grad()
    def _lead(self, noisy: Tensor, index: Tensor, task: Task) -> Tensor:
        """The v whose one DDIM step lands where the teacher does (Salimans & Ho 2022, appendix G)."""
        latent = noisy
        for part in range(self.options.teacher_steps):
            begin = self._timestep(index + part / self.options.teacher_steps)
            end = self._timestep(index + (part + 1) / self.options.teacher_steps)
            clean = self.noising.clean(latent, self._guide(latent, begin, task), begin)
            latent = self._move(latent, clean, begin, end)
        start, end = self._timestep(index.float()), self._timestep(index + 1.0)
        (alpha, sigma), (end_alpha, end_sigma) = self._level(start), self._level(end)
        ratio = end_sigma / sigma
        clean = (latent - ratio * noisy) / (end_alpha - ratio * alpha)
        return (alpha * noisy - clean) / sigma

    def _guide(self, latent: Tensor, timestep: Tensor, task: Task) -> Tensor:
        texts = torch.cat([task.empty.expand_as(task.known), task.known])
        with half_precision(self.device):
            both = self.ask_teacher(latent.repeat(2, 1, 1, 1), timestep.repeat(2), texts)
        plain, prompted = both.float().chunk(2)
        return plain + task.scale.view(-1, 1, 1, 1) * (prompted - plain)

    def _move(self, latent: Tensor, clean: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        """One step of DDIM (Song et al. 2021, equation 12, eta 0)."""
        (alpha, sigma), (end_alpha, end_sigma) = self._level(begin), self._level(end)
        return end_alpha * clean + end_sigma * (latent - alpha * clean) / sigma

    def _timestep(self, index: Tensor) -> Tensor:
        """Of the student's step `index`, trailing: 999 at 0; -1, without any noise, at the end."""
        return (1000 - 1000 * index / self.options.steps).round().long() - 1

    def _level(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.noising.at(timestep.clamp(min=0))
        ended = (timestep < 0).view(-1, 1, 1, 1)
        return alpha.masked_fill(ended, 1.0), sigma.masked_fill(ended, 0.0)

    def state(self) -> dict[str, object]:
        """Everything that a later run needs to go on."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "average_steps": self.average.steps,
        }

    def restore(self, state: Checkpoint) -> None:
        """The inverse of `state`."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values, self.average.steps = state["average"], state["average_steps"]


def distill(
    lessons: Lessons,
    out: Path,
    budget: Budget,
    options: DistillOptions,
    seed: int,
    rank: int,
    start: Path | None = None,
) -> None:
    """Distil `out/unet_full/` (into the student in `start`, if given) and write the averaged weights as `out/unet/` (fp16)."""
    device = lessons.captions.states.device
    student = load_denoiser(start) if start else None
    distillation = Distillation(load_denoiser(out / "unet_full"), options, device, student)
    first = resume(distillation, budget, out / "distill.pt", device)
    set_seed(seed + first + 1000 * rank)
    for step in budget.steps(first):
        bank, count = _choose_crops(lessons, step, options)
        latent, owners = bank.draw(count)
        rate = learning_rate(options.peak_rate, step, budget.fraction, warmup=100, decay_from=0.4)
        set_learning_rate(distillation.optimizer, rate)
        loss = distillation.step(_compose(latent, owners, lessons.captions, options))
        if step % 50 == 0 and is_leader():
            print(f"step {step} {budget.elapsed:.0f}s loss {loss.item():.4f}", flush=True)
        first = step + 1
    if not is_leader():
        return
    keep(distillation, budget, out / "distill.pt", first)
    with distillation.average.swapped():
        write_half(distillation.student, out / "unet")


def _compose(latent: Tensor, owners: Tensor, captions: Captions, options: DistillOptions) -> Task:
    real = latent.float().contiguous(memory_format=options.layout)
    dropped = torch.rand(len(real), 1, 1, device=real.device) < options.empty_share
    empty = captions.empty(1)
    text, known = (torch.where(dropped, empty, each) for each in captions.draw_pairs(owners))
    scale = torch.where(captions.views[owners], options.view_scale, options.guidance_scale)
    return Task(real, text, known, empty, scale)


def _choose_crops(lessons: Lessons, step: int, options: DistillOptions) -> tuple[Bank, int]:
    if step % options.large_every == options.large_every - 1:
        return lessons.banks[1024], max(1, options.batch // 8)
    return lessons.banks[512], options.batch


def main() -> None:
    """Command line: `python -m training.distill SHARD [SHARD ...] --out OUT --seconds 300`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder with the encoders and unet_full/")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--call-seconds", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--crops", type=int, default=24_000)
    parser.add_argument("--guidance-scale", type=float, default=FULL.guidance_scale, help="of the teacher")
    parser.add_argument("--begin-with", type=Path, help="unet folder of a student that knows the way already")
    parser.add_argument("--seed", type=int, default=3, help="the denoiser's, to find its latents again")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--plain-layout", action="store_true", help="NCHW in place of channels last")
    chosen = parser.parse_args()
    require_part(chosen.out / "unet_full")
    rank, device = join_ranks(), choose_device()
    sizes = DenoiserOptions(crops=chosen.crops)
    lessons = build_lessons(chosen.shards, chosen.out, sizes, device, chosen.seed + 1000 * rank)
    layout = torch.contiguous_format if chosen.plain_layout else torch.channels_last
    options = DistillOptions(
        batch=chosen.batch, guidance_scale=chosen.guidance_scale, compile=chosen.compile, layout=layout
    )
    budget = Budget(chosen.seconds, chosen.call_seconds)
    distill(lessons, chosen.out, budget, options, chosen.seed + 1, rank, chosen.begin_with)
    leave_ranks()


if __name__ == "__main__":
    main()

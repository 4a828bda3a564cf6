"""A generator of latents and its critic, trained against each other, whatever else the generator has to learn."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from training.critic import Critic, Maps, critic_loss
from training.parts import freeze, place, write_half
from training.progress import (
    Average,
    Budget,
    Checkpoint,
    descend,
    half_precision,
    keep,
    learning_rate,
    resume,
    set_learning_rate,
    set_seed,
)
from training.ranks import average, is_leader

Losses = dict[str, Tensor]
Seen = tuple[Maps, Tensor]  # the maps of latents, and the states of the captions under which they are judged
_WRITE_EVERY = 250  # steps


class AdversarialTraining:
    """Both sides, their optimizers, and the generator's averaged weights.

    Args:
        rates: highest learning rates of the generator and of the critic.
    """

    def __init__(
        self,
        generator: UNet2DConditionModel,
        critic: Critic,
        rates: tuple[float, float],
        device: torch.device,
    ) -> None:
        self.device, self._rates = device, rates
        self.generator = place(generator, device).requires_grad_(True)
        freeze(critic.backbones, device)
        self.critic = critic.to(device)
        self.optimizer, self.critic_optimizer = (
            _build_optimizer(self.generator),
            _build_optimizer(critic.heads),
        )
        self.average = Average(self.generator, decay=0.995)

    def _extract(self, latent: Tensor, text: Tensor, known: Maps | None = None) -> Maps:
        """The maps by which the critic judges; gradients flow."""
        with half_precision(self.device):
            return self.critic.extract(latent, text, known)

    def _score(self, seen: Seen) -> Tensor:
        """The critic's scores; gradients flow."""
        with half_precision(self.device):
            return self.critic(*seen).float()

    def _step_critic(self, real: Seen, *false: Seen) -> Tensor:
        """One update of the critic; no gradient flows further than its heads."""
        if not self.average.steps:
            self._calibrate_critic(real)
        loss = critic_loss(*self._score(_join(real, *false)).chunk(1 + len(false)))
        descend(loss, self.critic_optimizer, self.critic.heads)
        torch.clear_autocast_cache()  # it has the heads' weights of before
        return loss.detach()

    def _calibrate_critic(self, real: Seen) -> None:
        with half_precision(self.device):
            self.critic.calibrate(real[0])
        average(list(self.critic.heads.buffers()))

    def _step_generator(self, loss: Tensor) -> None:
        descend(loss, self.optimizer, self.generator, largest_norm=1.0)
        self.average.update()

    def set_rates(self, step: int, fraction: float) -> None:
        """Of both sides, by how much of the time is over."""
        for optimizer, peak in zip((self.optimizer, self.critic_optimizer), self._rates, strict=True):
            set_learning_rate(optimizer, learning_rate(peak, step, fraction, warmup=50, decay_from=0.6))

    def state(self) -> dict[str, object]:
        """Everything that a later run needs to go on."""
        return {
            "generator": self.generator.state_dict(),
            "critic": self.critic.heads.state_dict(),  # calibration included
            "optimizers": [self.optimizer.state_dict(), self.critic_optimizer.state_dict()],
            "average": self.average.values,
            "average_steps": self.average.steps,
        }

    def restore(self, state: Checkpoint) -> None:
        """The inverse of `state`."""
        self.generator.load_state_dict(state["generator"])
        self.critic.heads.load_state_dict(state["critic"])
        for optimizer, kept in zip((self.optimizer, self.critic_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.average.values, self.average.steps = state["average"], state["average_steps"]


def _join(*seen: Seen) -> Seen:
    """One batch of all, without gradients."""
    kinds = zip(*(maps for maps, _ in seen), strict=True)
    maps = [[torch.cat(same).detach() for same in zip(*kind, strict=True)] for kind in kinds]
    return maps, torch.cat([text for _, text in seen])


def _build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    return torch.optim.AdamW(parameters, betas=(0.0, 0.99), weight_decay=0.0, fused=parameters[0].is_cuda)


def run_adversarial(
    training: AdversarialTraining,
    take_step: Callable[[int], Losses],
    out: Path,
    budget: Budget,
    seed: int,
) -> None:
    """Train or go on; now and then, and at the end, write a checkpoint and the averaged weights (fp16) as `out`."""
    checkpoint = out.with_name(f"sharpen-{out.name}.pt")
    first = resume(training, budget, checkpoint, training.device)
    set_seed(seed + first)
    for step in budget.steps(first):
        training.set_rates(step, budget.fraction)
        with half_precision(training.device):  # one for all of it: weights are cast once
            losses = take_step(step)
        first = step + 1
        if step % 20 == 0 and is_leader():
            shown = " ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
            print(f"step {step} {budget.elapsed:.0f}s {shown}", flush=True)
        if first % _WRITE_EVERY == 0 and is_leader():
            _write(training, budget, checkpoint, out, first)
    if is_leader():
        _write(training, budget, checkpoint, out, first)


def _write(training: AdversarialTraining, budget: Budget, checkpoint: Path, out: Path, step: int) -> None:
    keep(training, budget, checkpoint, step)
    with training.average.swapped():
        write_half(training.generator, out)

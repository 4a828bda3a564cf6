"""A generator of latents and its critic, trained against each other, whatever else the generator has to learn."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from training.critic import Critic, critic_loss
from training.parts import place, write_half
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
        self.critic = critic.to(device)
        self.optimizer, self.critic_optimizer = (
            _build_optimizer(self.generator),
            _build_optimizer(critic.heads),
        )
        self.average = Average(self.generator, decay=0.995)

    def _score(self, latent: Tensor, text: Tensor) -> Tensor:
        """The critic's scores; gradients flow."""
        with half_precision(self.device):
            return self.critic(latent, text).float()

    def _step_critic(self, real: tuple[Tensor, Tensor], *false: tuple[Tensor, Tensor]) -> Tensor:
        """One update of the critic by pairs of latents and their captions' states."""
        if not self.average.steps:
            self._calibrate_critic(*real)
        loss = critic_loss(*(self._score(*pair) for pair in (real, *false)))
        descend(loss, self.critic_optimizer, self.critic.heads)
        return loss.detach()

    def _calibrate_critic(self, latent: Tensor, text: Tensor) -> None:
        with half_precision(self.device):
            self.critic.calibrate(latent, text)
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


def _build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), betas=(0.0, 0.99), weight_decay=0.0)


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

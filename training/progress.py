"""What every training stage shares: a time budget, an update, averaged weights, and checkpoints to go on from."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from training.ranks import average_gradients, broadcast_leader

P = ParamSpec("P")
R = TypeVar("R")
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
Checkpoint = dict[str, Any]  # as `torch.load` has it; each stage knows its own keys
_LOOK_EVERY = 10


class Trained(Protocol):
    """What a stage trains, with all that a later run needs to go on."""

    def state(self) -> dict[str, object]: ...

    def restore(self, state: Checkpoint) -> None: ...


@dataclass(slots=True)
class Budget:
    """Wall-clock seconds of one stage, over all the runs that it takes.

    `seconds` is the stage's whole length; a run ends early after `call_seconds`, and the next one
    goes on with `spent` read from the checkpoint.
    """

    seconds: float
    call_seconds: float = float("inf")
    spent: float = 0.0
    started: float = field(default_factory=time.monotonic)
    noted: float = 0.0  # seconds, when the leader's clock was read last

    @property
    def elapsed(self) -> float:
        """Seconds of the stage so far, earlier runs counted in."""
        return self.spent + time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        """Share of the stage done at the last reading, 0 to 1; the same on every rank."""
        return min(1.0, (self.spent + self.noted) / self.seconds)

    def steps(self, first: int = 0) -> Iterator[int]:
        """Step numbers from `first` on, until the stage or this run is over."""
        for step in count(first):
            # Now and then only: with several ranks a reading makes them wait for each other.
            if step == first or step % _LOOK_EVERY == 0:
                self.noted = broadcast_leader(time.monotonic() - self.started)
            if self.spent + self.noted >= self.seconds or self.noted >= self.call_seconds:
                return
            yield step


class Average:
    """Exponential moving average of a module's parameters, float32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.live = list(module.parameters())
        self.values = [parameter.detach().clone().float() for parameter in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the live weights; the first steps move faster, so the start is forgotten."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            self.values, [parameter.detach() for parameter in self.live], 1 - decay
        )

    @contextmanager
    def swapped(self) -> Generator[None]:
        """The module holds the averaged weights inside the block, and its own again after it."""
        kept = [parameter.detach().clone() for parameter in self.live]
        self._load(self.values)
        try:
            yield
        finally:
            self._load(kept)

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            [parameter.data for parameter in self.live], values
        )


@torch.no_grad()
def begin_with(model: nn.Module, trained: nn.Module) -> None:
    """Take over trained weights, of fewer latent channels perhaps: those that are new count a tenth at first."""
    for own, known in zip(model.parameters(), trained.parameters(), strict=True):
        if own.shape[1:] != known.shape[1:]:
            own.mul_(0.1)
        own[tuple(slice(side) for side in known.shape)] = known


def set_seed(seed: int) -> None:
    """Of torch's generators, on every device."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # its argument has no type


def descend(
    loss: Tensor, optimizer: torch.optim.Optimizer, module: nn.Module, largest_norm: float = float("inf")
) -> None:
    """One update of the module, whose parameters the optimizer has, by the ranks' mean gradient.

    Args:
        loss: a scalar.
        largest_norm: longer gradients are shortened to it.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    average_gradients(module)
    if largest_norm < float("inf"):
        torch.nn.utils.clip_grad_norm_(module.parameters(), largest_norm)
    optimizer.step()


def learning_rate(
    peak: float, step: int, fraction: float, warmup: int = 200, decay_from: float = 0.6
) -> float:
    """Warm up, hold, then fall linearly to 2 % of the peak over the rest of the budget."""
    fall = max(0.0, (fraction - decay_from) / (1 - decay_from))
    return peak * min(1.0, (step + 1) / warmup) * (1 - 0.98 * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Write all or nothing: a run killed here leaves the last checkpoint whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint | None:
    """The last checkpoint, or None where the stage has not begun."""
    if not path.is_file():
        return None
    return torch.load(path, map_location=device, weights_only=True)


def keep(trained: Trained, budget: Budget, path: Path, step: int) -> None:
    """Write a checkpoint; `step` is the next one."""
    save_checkpoint(path, trained.state() | {"step": step, "spent": budget.elapsed})


def resume(trained: Trained, budget: Budget, path: Path, device: torch.device) -> int:
    """Go on from the last checkpoint, if there is one; the number of the next step."""
    state = load_checkpoint(path, device)
    if state is None:
        return 0
    trained.restore(state)
    budget.spent = state["spent"]
    return state["step"]


def compile_for(side: int, function: Predict, *, really: bool) -> Predict:
    """Compile for latents of `side`, at one batch size: about a minute. Others are rarer and go uncompiled."""
    if not really:
        return function
    compiled = compile_for_one_shape(function)

    def predict(noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return (compiled if noisy.shape[-1] == side else function)(noisy, timestep, text)

    return predict


def compile_for_one_shape(function: Callable[P, R]) -> Callable[P, R]:
    """Each other shape is compiled again: 40 to 100 s."""
    return torch.compile(function, dynamic=False)  # pyright: ignore[reportUnknownMemberType]


def choose_device() -> torch.device:
    """The first GPU; on a machine without one the CPU, with a word on how slow that is."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        return torch.device("cuda")
    print("no GPU found: training on the CPU, good for a smoke test only (about 1,000 times slower)")
    return torch.device("cpu")


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; the CPU stays in float32, where bfloat16 convolutions are many times slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

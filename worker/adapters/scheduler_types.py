"""What diffusers' schedulers have in common, as protocols: their base class declares none of it."""

from collections.abc import Mapping
from typing import Any, Protocol, Self, cast, runtime_checkable

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor


class AnyScheduler(Protocol):
    """What every scheduler of diffusers has."""

    timesteps: Tensor

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def order(self) -> int: ...

    @property
    def init_noise_sigma(self) -> float | Tensor: ...

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: object) -> Self: ...

    def set_timesteps(self, num_inference_steps: int, **options: object) -> None: ...

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: object
    ) -> tuple[Tensor, ...]: ...


@runtime_checkable
class ScalesInput(Protocol):
    """Most schedulers: they scale the latent for the model."""

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...


@runtime_checkable
class CountsSteps(Protocol):
    """One whose first step can be set rather than looked up by its timestep."""

    def set_begin_index(self, begin_index: int) -> None: ...


@runtime_checkable
class ScalesNoise(Protocol):
    """Flow matching's way to a noisy latent."""

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor: ...


@runtime_checkable
class AddsNoise(Protocol):
    """The others' way to a noisy latent."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


@runtime_checkable
class Diffuses(Protocol):
    """One of diffusion (Ho et al. 2020) rather than of flow matching."""

    @property
    def alphas_cumprod(self) -> Tensor: ...


def find_scheduler(pipe: DiffusionPipeline) -> AnyScheduler:
    """The scheduler of the pipeline's folder."""
    return cast(AnyScheduler, pipe.components["scheduler"])

"""ControlNets of the UNet families: each tile is conditioned on its own crop of the control image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from torch import Tensor, nn

from worker.adapters.add_ons import Control, to_pil
from worker.adapters.errors import ModelFolderError, UnsupportedConditionError
from worker.adapters.loading import load_with_report
from worker.adapters.model_index import read_object
from worker.adapters.scheduler_types import find_scheduler
from worker.adapters.schedulers import list_numbers, make_scheduler
from worker.adapters.unet_pipeline import UNetPipeline, use_scheduler
from worker.engine.canvas import Plane
from worker.engine.ensemble import Batch
from worker.engine.plan import StagePlan

# Else its residuals have another number, or another size, than the activations that they are added to.
_MUST_AGREE = (
    "in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type",
    "addition_time_embed_dim", "projection_class_embeddings_input_dim",
)  # fmt: skip
# Fields that need what diffusers' ControlNet pipelines do beside the network's call.
_ALLOWED = {
    "conditioning_channels": 3,
    "global_pool_conditions": False,
    "class_embed_type": None,
    "num_class_embeds": None,
}


@dataclass(frozen=True, slots=True)
class ConditioningScale:
    """diffusers' `controlnet_conditioning_scale`, `control_guidance_start` and `control_guidance_end`.

    Args:
        window: first and last timestep at which the ControlNet is applied, or None: at all.
    """

    scale: float
    window: tuple[float, float] | None

    def at(self, timesteps: Tensor, axes: int) -> float | Tensor:
        """Of each prediction, (B, 1, ...) with as many axes as what it is multiplied by.

        Outside the window that is 0: to leave the network out, the host would have to wait for the clock.
        """
        if self.window is None:
            return self.scale
        first, last = self.window
        return self.scale * ((timesteps <= first) & (timesteps >= last)).view(-1, *[1] * (axes - 1))


@dataclass(frozen=True, slots=True)
class StageControlNet:
    """A ControlNet and its image, as large as the canvas of one stage.

    Args:
        image: (3, H, W), uint8.
        canvas: that it lies on, in pixels.
        scale: pixels per latent pixel.
    """

    network: ControlNetModel
    image: Tensor
    canvas: Plane
    scale: int
    conditioning_scale: ConditioningScale

    def predict_residuals(
        self, crops: Tensor, states: Tensor, added_cond_kwargs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[list[Tensor], Tensor]:
        """The UNet's `down_block_additional_residuals` and `mid_block_additional_residual`."""
        pixels = torch.stack(
            [self.canvas.gather(self.image, tile.scaled(self.scale)) for tile in batch.tiles]
        )
        return self.network(
            crops,
            batch.timesteps,
            encoder_hidden_states=states,
            controlnet_cond=pixels.to(crops.dtype) / 255,
            conditioning_scale=self.conditioning_scale.at(batch.timesteps, crops.dim()),
            added_cond_kwargs=dict(added_cond_kwargs),
            return_dict=False,
        )


class ControlNets:
    """Opens ControlNets for one UNet and keeps the last one."""

    def __init__(self, pipe: UNetPipeline) -> None:
        self._pipe = pipe
        self._last: tuple[Path, ControlNetModel] | None = None

    def open(self, control: Control | None) -> Callable[[StagePlan], StageControlNet | None]:
        """Load the network; each stage then fits the image to its own canvas.

        Raises:
            ModelFolderError: the folder holds none, or one for another model.
        """
        if control is None:
            return lambda stage: None
        if self._last is None or self._last[0] != control.path:
            self._last = None  # let its memory go before the next is loaded
            self._last = control.path, self._load(control.path)
        network = self._last[1]
        return lambda stage: self._begin(control, network, stage)

    def _begin(self, control: Control, network: ControlNetModel, stage: StagePlan) -> StageControlNet:
        pipe, scale = self._pipe, self._pipe.vae_scale_factor
        image = fit_control_image(control, stage, scale).to(pipe.device)
        scheduler = make_scheduler(find_scheduler(pipe), use_scheduler(stage.whole), pipe.device)
        scheduler.skip(stage.whole.steps - stage.steps)
        conditioning_scale = read_conditioning_scale(control, scheduler.timesteps)
        return StageControlNet(network, image, stage.canvas.scaled(scale), scale, conditioning_scale)

    def _load(self, folder: Path) -> ControlNetModel:
        network = load_control_net(ControlNetModel, folder, self._pipe.unet.dtype, self._pipe.device)
        # It sees the latent alone, whatever else the UNet sees.
        vae = cast(dict[str, Any], self._pipe.vae.config)  # pyright: ignore[reportUnknownMemberType]
        own: dict[str, Any] = {**self._pipe.unet.config, "in_channels": vae["latent_channels"]}
        for field in _MUST_AGREE:
            theirs, ours = (_flat(config.get(field)) for config in (network.config, own))
            if theirs != ours:
                raise ModelFolderError(
                    f"{folder.name} is for another model: its {field} is {theirs}, this model's is {ours}"
                )
        for field, allowed in _ALLOWED.items():
            if network.config.get(field, allowed) != allowed:
                raise ModelFolderError(
                    f"{folder.name} has {field} {network.config[field]}; supported: {allowed}"
                )
        theirs = 2 ** (len(network.config["conditioning_embedding_out_channels"]) - 1)
        if theirs != self._pipe.vae_scale_factor:
            raise ModelFolderError(
                f"{folder.name} takes {theirs} px for each latent pixel, this model has {self._pipe.vae_scale_factor}"
            )
        return network


def _flat(value: object) -> object:
    return list(cast(tuple[object, ...], value)) if isinstance(value, tuple) else value


def fit_control_image(control: Control, stage: StagePlan, scale: int) -> Tensor:
    """The image on a stage's canvas, (3, H, W), uint8: resized to the picture there, and padded to the canvas.

    What of the canvas lies beyond the finished picture has the colours of its edge.
    """
    picture = control.picture
    if not isinstance(picture, Tensor):
        return picture(stage.canvas.scaled(scale).size)
    height, width = stage.shown_px(scale)
    resized = np.array(VaeImageProcessor().resize(to_pil(picture), height, width))
    below, beside = stage.canvas.height * scale - height, stage.canvas.width * scale - width
    padded = np.pad(resized, ((0, below), (0, beside), (0, 0)), mode="edge")
    return torch.as_tensor(padded).permute(2, 0, 1)


def read_conditioning_scale(control: Control, timesteps: Tensor) -> ConditioningScale:
    """As diffusers' pipelines count: a step is controlled if it lies wholly between start and end.

    Args:
        timesteps: those that are run.

    Raises:
        UnsupportedConditionError: that divides the predictions of one timestep, of which solvers of higher
            order have several (Heun's, KDPM2's).
    """
    if (control.start, control.end) == (0.0, 1.0):
        return ConditioningScale(control.scale, None)
    clock, count = list_numbers(timesteps), len(timesteps)
    steps = [i for i in range(count) if i / count >= control.start and (i + 1) / count <= control.end]
    if not steps:
        return ConditioningScale(control.scale, (-1.0, 0.0))
    chosen = [clock[step] for step in steps]
    around = [step for step in range(count) if clock[step] in chosen]
    if around != steps:
        start, end = floor(around[0] / count * 1e4) / 1e4, ceil((around[-1] + 1) / count * 1e4) / 1e4
        raise UnsupportedConditionError(
            f"control.start and control.end: {control.start:g} to {control.end:g} divides what the scheduler "
            f"predicts at one timestep; allowed, for example: {start:g} to {end:g}"
        )
    return ConditioningScale(control.scale, (max(chosen), min(chosen)))


N = TypeVar("N", ControlNetModel, FluxControlNetModel)


def load_control_net(kind: type[N], folder: Path, dtype: torch.dtype, device: torch.device) -> N:
    """Load a folder whole, onto the device.

    Raises:
        ModelFolderError: it is of another kind, cannot be read, or is not whole.
    """
    _require_kind(folder, kind.__name__)
    try:
        network, report = load_with_report(kind, folder, torch_dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFolderError(
            f"{folder.name} cannot be loaded as a {kind.__name__}: {str(error)[:400]}"
        ) from error
    for what, keys in (("has no", report["missing_keys"]), ("has the unknown", report["unexpected_keys"])):
        if keys:
            raise ModelFolderError(
                f"{folder.name} {what} {sorted(keys)[0]}, one of {len(keys)} keys that do not fit its "
                f"configuration; supported: a whole {kind.__name__}"
            )
    nn.Module.to(network, device)  # diffusers' own has no types
    return network


def _require_kind(folder: Path, kind: str) -> None:
    config = folder / "config.json"
    found = read_object(config).get("_class_name", kind) if config.is_file() else kind
    if found != kind:
        raise ModelFolderError(f"{folder.name} holds a {found}; this model takes a {kind}")

"""ControlNets of the UNet families: each tile follows its own crop of the control picture."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from torch import Tensor

from worker.adapters.add_ons import Control, to_pil
from worker.adapters.errors import ModelFolderError, UnsupportedConditionError
from worker.adapters.model_index import read_object
from worker.adapters.schedulers import make_scheduler
from worker.adapters.unet_pipeline import UNetPipeline, use_scheduler
from worker.engine.canvas import Plane
from worker.engine.ensemble import Batch
from worker.engine.plan import StagePlan

# Else what it answers has another number, or another size, than what the UNet adds it to.
_MUST_AGREE = (
    "in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type",
    "addition_time_embed_dim", "projection_class_embeddings_input_dim",
)  # fmt: skip
# What diffusers' pipelines read or would need to be told for it.
_ALLOWED = {
    "conditioning_channels": 3,
    "global_pool_conditions": False,
    "class_embed_type": None,
    "num_class_embeds": None,
}


@dataclass(frozen=True, slots=True)
class Loudness:
    """How loud a ControlNet is, and when.

    Args:
        clock: first and last timestep at which it is applied, or None: at all.
    """

    strength: float
    clock: tuple[float, float] | None

    def at(self, timesteps: Tensor, axes: int) -> float | Tensor:
        """Of each prediction, (B, 1, ...) with as many axes as what it is multiplied by.

        Outside its time that is 0 rather than nothing: to know, the host would have to wait.
        """
        if self.clock is None:
            return self.strength
        first, last = self.clock
        return self.strength * ((timesteps <= first) & (timesteps >= last)).view(-1, *[1] * (axes - 1))


@dataclass(frozen=True, slots=True)
class Guide:
    """A ControlNet that looks at one picture.

    Args:
        picture: as large as the canvas, (3, H, W), uint8.
        canvas: that it lies on, in pixels.
        scale: pixels per latent pixel.
    """

    network: ControlNetModel
    picture: Tensor
    canvas: Plane
    scale: int
    loudness: Loudness

    def steer(
        self, crops: Tensor, states: Tensor, told: dict[str, Tensor], batch: Batch
    ) -> tuple[list[Tensor], Tensor]:
        """What the UNet adds: (to each of its downward activations, to its middle)."""
        pixels = torch.stack(
            [self.canvas.gather(self.picture, tile.scaled(self.scale)) for tile in batch.tiles]
        )
        return self.network(
            crops,
            batch.timesteps,
            encoder_hidden_states=states,
            controlnet_cond=pixels.to(crops.dtype) / 255,
            conditioning_scale=self.loudness.at(batch.timesteps, crops.dim()),
            added_cond_kwargs=told,
            return_dict=False,
        )


class ControlNets:
    """Opens ControlNets for one UNet and keeps the last one."""

    def __init__(self, pipe: UNetPipeline) -> None:
        self._pipe = pipe
        self._last: tuple[Path, ControlNetModel] | None = None

    def open(self, control: Control | None) -> Callable[[StagePlan], Guide | None]:
        """Load the network; each stage then lays the picture over its own canvas.

        Raises:
            ModelFolderError: the folder holds none, or one for another model.
        """
        if control is None:
            return lambda stage: None
        if self._last is None or self._last[0] != control.path:
            self._last = None  # let its memory go before the next is loaded
            self._last = control.path, self._load(control.path)
        network = self._last[1]
        return lambda stage: self._lay(control, network, stage)

    def _lay(self, control: Control, network: ControlNetModel, stage: StagePlan) -> Guide:
        pipe, scale = self._pipe, self._pipe.vae_scale_factor
        picture = lay_over(control.picture, stage, scale).to(pipe.device)
        scheduler = make_scheduler(pipe.scheduler, use_scheduler(stage), pipe.device)
        loudness = find_loudness(control, scheduler.timesteps)
        return Guide(network, picture, stage.canvas.scaled(scale), scale, loudness)

    def _load(self, folder: Path) -> ControlNetModel:
        network = load_control_net(ControlNetModel, folder, self._pipe.unet.dtype)
        for field in _MUST_AGREE:
            theirs, ours = (_flat(part.config.get(field)) for part in (network, self._pipe.unet))
            if theirs != ours:
                raise ModelFolderError(
                    f"{folder.name} is for another model: its {field} is {theirs}, this model's is {ours}"
                )
        for field, allowed in _ALLOWED.items():
            if network.config.get(field, allowed) != allowed:
                raise ModelFolderError(
                    f"{folder.name} has {field} {network.config[field]}; supported: {allowed}"
                )
        scale, ours = (
            2 ** (len(network.config["conditioning_embedding_out_channels"]) - 1),
            self._pipe.vae_scale_factor,
        )
        if scale != ours:
            raise ModelFolderError(
                f"{folder.name} takes {scale} px for each latent pixel, this model has {ours}"
            )
        return network.to(self._pipe.device)


def _flat(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def lay_over(picture: Tensor, stage: StagePlan, scale: int) -> Tensor:
    """Bring a picture (3, h, w), uint8, to the size of the finished one on a stage's canvas: (3, H, W).

    What of the canvas lies beyond the finished picture has the colours of its edge.
    """
    height, width = stage.shown_px(scale)
    resized = np.array(VaeImageProcessor().resize(to_pil(picture), height, width))
    below, beside = stage.canvas.height * scale - height, stage.canvas.width * scale - width
    padded = np.pad(resized, ((0, below), (0, beside), (0, 0)), mode="edge")
    return torch.from_numpy(padded).permute(2, 0, 1)


def find_loudness(control: Control, timesteps: Tensor) -> Loudness:
    """As diffusers' pipelines count: a step is controlled if it lies wholly between start and end.

    Raises:
        UnsupportedConditionError: that divides the predictions of one timestep, of which solvers of higher
            order have several (Heun's, KDPM2's).
    """
    if (control.start, control.end) == (0.0, 1.0):
        return Loudness(control.scale, None)
    clock, count = timesteps.tolist(), len(timesteps)
    steps = [i for i in range(count) if i / count >= control.start and (i + 1) / count <= control.end]
    if not steps:
        return Loudness(control.scale, (-1.0, 0.0))
    chosen = [clock[step] for step in steps]
    around = [step for step in range(count) if clock[step] in chosen]
    if around != steps:
        start, end = floor(around[0] / count * 1e4) / 1e4, ceil((around[-1] + 1) / count * 1e4) / 1e4
        raise UnsupportedConditionError(
            f"control.start and control.end: {control.start:g} to {control.end:g} divides what the scheduler "
            f"predicts at one timestep; allowed, for example: {start:g} to {end:g}"
        )
    return Loudness(control.scale, (max(chosen), min(chosen)))


N = TypeVar("N", ControlNetModel, FluxControlNetModel)


def load_control_net(kind: type[N], folder: Path, dtype: torch.dtype) -> N:
    """
    Raises:
        ModelFolderError: it is of another kind, cannot be read, or is not whole.
    """
    _require_kind(folder, kind.__name__)
    try:
        network, found = kind.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]  # typed as the network alone
            str(folder),
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFolderError(
            f"{folder.name} cannot be loaded as a {kind.__name__}: {str(error)[:400]}"
        ) from error
    for what, keys in (("has no", found["missing_keys"]), ("has the unknown", found["unexpected_keys"])):
        if keys:
            raise ModelFolderError(
                f"{folder.name} {what} {sorted(keys)[0]}, one of {len(keys)} keys that do not fit its "
                f"configuration; supported: a whole {kind.__name__}"
            )
    return network


def _require_kind(folder: Path, kind: str) -> None:
    config = folder / "config.json"
    found = read_object(config).get("_class_name", kind) if config.is_file() else kind
    if found != kind:
        raise ModelFolderError(f"{folder.name} holds a {found}; this model takes a {kind}")

"""ControlNets of the UNet families: each tile follows its own crop of the control picture."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor

from worker.adapters.add_ons import Control, to_pil
from worker.adapters.errors import ModelFolderError
from worker.adapters.schedulers import make_scheduler
from worker.adapters.unet_pipeline import UNetPipeline, use_scheduler
from worker.engine.grid import Tile
from worker.engine.plan import StagePlan

_MUST_AGREE = ("cross_attention_dim", "block_out_channels", "addition_embed_type")


@dataclass(frozen=True, slots=True)
class Loudness:
    """How loud a ControlNet is, and when.

    Args:
        clock: first and last timestep at which it is heard, or None: at all.
    """

    strength: float
    clock: tuple[float, float] | None

    def at(self, timestep: Tensor) -> float | Tensor:
        """Outside its time it is multiplied by 0 rather than left out: to know, the host would have to wait."""
        if self.clock is None:
            return self.strength
        first, last = self.clock
        return self.strength * ((timestep <= first) & (timestep >= last))


@dataclass(frozen=True, slots=True)
class Guide:
    """A ControlNet that looks at one picture.

    Args:
        picture: as large as the finished picture, (3, H, W), uint8.
        scale: pixels per latent pixel.
    """

    network: ControlNetModel
    picture: Tensor
    scale: int
    loudness: Loudness

    def steer(
        self, crops: Tensor, timestep: Tensor, states: Tensor, told: dict[str, Tensor], tiles: Sequence[Tile]
    ) -> tuple[list[Tensor], Tensor]:
        """What the UNet adds: (to each of its downward activations, to its middle)."""
        pixels = torch.stack([tile.scaled(self.scale).crop(self.picture) for tile in tiles])
        return self.network(
            crops,
            timestep,
            encoder_hidden_states=states,
            controlnet_cond=pixels.to(crops.dtype) / 255,
            conditioning_scale=self.loudness.at(timestep),
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
        pipe, canvas, scale = self._pipe, stage.denoise, self._pipe.vae_scale_factor
        resized = VaeImageProcessor().resize(
            to_pil(control.picture), canvas.height * scale, canvas.width * scale
        )
        picture = torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(pipe.device)
        loudness = find_loudness(
            control, make_scheduler(pipe.scheduler, use_scheduler(stage), pipe.device).timesteps
        )
        return Guide(network, picture, scale, loudness)

    def _load(self, folder: Path) -> ControlNetModel:
        try:
            network = ControlNetModel.from_pretrained(
                str(folder), torch_dtype=self._pipe.unet.dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ModelFolderError(f"{folder.name} cannot be loaded as a ControlNet: {error}") from error
        for field in _MUST_AGREE:
            theirs, ours = (_flat(part.config.get(field)) for part in (network, self._pipe.unet))
            if theirs != ours:
                raise ModelFolderError(
                    f"{folder.name} is for another model: its {field} is {theirs}, this model's is {ours}"
                )
        return network.to(self._pipe.device)


def _flat(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def find_loudness(control: Control, timesteps: Tensor) -> Loudness:
    """As diffusers' pipelines count: a step is heard if it lies wholly between start and end."""
    if (control.start, control.end) == (0.0, 1.0):
        return Loudness(control.scale, None)
    count = len(timesteps)
    heard = [
        float(timestep)
        for index, timestep in enumerate(timesteps)
        if index / count >= control.start and (index + 1) / count <= control.end
    ]
    return Loudness(control.scale, (max(heard), min(heard)) if heard else (-1.0, 0.0))

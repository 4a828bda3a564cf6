"""ControlNets of FLUX.1: each tile follows its own crop of the control picture's latent."""

# diffusers types tensors as FloatTensor, and as optional what is always there.
# pyright: reportArgumentType=false

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from worker.adapters.add_ons import Control
from worker.adapters.autoencoders.encoder import flatten_encoder
from worker.adapters.autoencoders.scaling import read_scaling
from worker.adapters.errors import ModelFolderError
from worker.adapters.extras.control_net import Loudness, find_loudness, lay_over, load_control_net
from worker.engine.canvas import Plane, Rectangle
from worker.engine.ensemble import Batch
from worker.engine.plan import DecodePlan, StagePlan
from worker.engine.vae.encode import encode

_MUST_AGREE = (
    "in_channels",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "pooled_projection_dim",
)
Samples = tuple[list[Tensor] | None, list[Tensor] | None]


@dataclass(frozen=True, slots=True)
class FluxGuide:
    """A ControlNet that looks at one picture.

    Args:
        latent: of the picture, (C, H, W), as large as the canvas.
    """

    network: FluxControlNetModel
    latent: Tensor
    canvas: Plane
    loudness: Loudness

    def steer(self, told: dict[str, Tensor | None], batch: Batch) -> Samples:
        """What the transformer adds: (to its double blocks, to its single blocks).

        Args:
            told: all that the transformer is told.
        """
        crops = torch.stack([self.canvas.gather(self.latent, tile) for tile in batch.tiles])
        known = told if self.network.config["guidance_embeds"] else told | {"guidance": None}
        return self.network(
            controlnet_cond=FluxPipeline._pack_latents(crops, *crops.shape).to(self.network.dtype),
            conditioning_scale=self.loudness.at(batch.timesteps, axes=3),
            return_dict=False,
            **known,
        )


class FluxControlNets:
    """Opens ControlNets for one transformer and keeps the last one."""

    def __init__(self, pipe: FluxPipeline) -> None:
        self._pipe = pipe
        self._last: tuple[Path, FluxControlNetModel] | None = None

    def open(
        self, control: Control | None, find_timesteps: Callable[[StagePlan], Tensor]
    ) -> Callable[[StagePlan], FluxGuide | None]:
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
        return lambda stage: FluxGuide(
            network, self._lay(control, stage), stage.canvas, find_loudness(control, find_timesteps(stage))
        )

    def _lay(self, control: Control, stage: StagePlan) -> Tensor:
        """The picture's latent: the mean, where diffusers' pipeline draws one around it."""
        canvas, scale = stage.canvas, self._pipe.vae_scale_factor
        picture = lay_over(control.picture, stage, scale).to(self._pipe._execution_device)
        encoder = flatten_encoder(self._pipe.vae, read_scaling(type(self._pipe), self._pipe.vae))
        assert encoder is not None

        def paint(part: Rectangle) -> Tensor:
            return canvas.scaled(scale).gather(picture, part).float() / 127.5 - 1

        return encode(paint, encoder, canvas, DecodePlan())

    def _load(self, folder: Path) -> FluxControlNetModel:
        transformer = self._pipe.transformer
        network = load_control_net(FluxControlNetModel, folder, transformer.dtype)
        for field in _MUST_AGREE:
            theirs, ours = (part.config.get(field) for part in (network, transformer))
            if theirs != ours:
                raise ModelFolderError(
                    f"{folder.name} is for another model: its {field} is {theirs}, this model's is {ours}"
                )
        for field in ("num_mode", "conditioning_embedding_channels"):
            if network.config.get(field) is not None:
                raise ModelFolderError(
                    f"{folder.name} has {field} {network.config[field]}; allowed: a ControlNet of one mode that "
                    "takes latents"
                )
        return network.to(self._pipe._execution_device)

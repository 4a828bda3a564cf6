"""ControlNets of FLUX.1: each tile is conditioned on its own crop of the control image's latent."""

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
from worker.adapters.extras.control_net import (
    ConditioningScale,
    fit_control_image,
    load_control_net,
    read_conditioning_scale,
)
from worker.adapters.packing import pack
from worker.adapters.placement import find_execution_device
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
Residuals = tuple[list[Tensor] | None, list[Tensor] | None]


@dataclass(frozen=True, slots=True)
class StageFluxControlNet:
    """A ControlNet and its image, as large as the canvas of one stage.

    Args:
        latent: of the image, (C, H, W).
    """

    network: FluxControlNetModel
    latent: Tensor
    canvas: Plane
    conditioning_scale: ConditioningScale

    def predict_residuals(self, inputs: dict[str, Tensor | None], batch: Batch) -> Residuals:
        """The transformer's `controlnet_block_samples` and `controlnet_single_block_samples`.

        Args:
            inputs: the transformer's own.
        """
        crops = torch.stack([self.canvas.gather(self.latent, tile) for tile in batch.tiles])
        if not self.network.config["guidance_embeds"]:
            inputs = inputs | {"guidance": None}
        return self.network(
            controlnet_cond=pack(crops).to(self.network.dtype),
            conditioning_scale=self.conditioning_scale.at(batch.timesteps, axes=3),
            return_dict=False,
            **inputs,
        )


class FluxControlNets:
    """Opens ControlNets for one transformer and keeps the last one."""

    def __init__(self, pipe: FluxPipeline) -> None:
        self._pipe = pipe
        self._last: tuple[Path, FluxControlNetModel] | None = None

    def open(
        self, control: Control | None, find_timesteps: Callable[[StagePlan], Tensor]
    ) -> Callable[[StagePlan], StageFluxControlNet | None]:
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
        return lambda stage: StageFluxControlNet(
            network,
            self._encode(control, stage),
            stage.canvas,
            read_conditioning_scale(control, find_timesteps(stage)),
        )

    def _encode(self, control: Control, stage: StagePlan) -> Tensor:
        """The image's latent: the mean, where diffusers' pipeline draws one around it."""
        canvas, scale = stage.canvas, self._pipe.vae_scale_factor
        image = fit_control_image(control, stage, scale).to(find_execution_device(self._pipe))
        encoder = flatten_encoder(self._pipe.vae, read_scaling(type(self._pipe), self._pipe.vae))
        assert encoder is not None

        def paint(part: Rectangle) -> Tensor:
            return canvas.scaled(scale).gather(image, part).float() / 127.5 - 1

        return encode(paint, encoder, canvas, DecodePlan())

    def _load(self, folder: Path) -> FluxControlNetModel:
        transformer = self._pipe.transformer
        network = load_control_net(
            FluxControlNetModel, folder, transformer.dtype, find_execution_device(self._pipe)
        )
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
        return network

"""The loop of diffusers' StableDiffusionPanoramaPipeline, for comparison."""

import time
from collections.abc import Callable
from typing import cast

import torch
from diffusers import StableDiffusionPanoramaPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn


class _Panorama(StableDiffusionPanoramaPipeline):
    """Its loop as it is, with SDXL's window: views of `side` latent pixels, half overlapping."""

    side = 128

    def get_views(
        self, panorama_height: int, panorama_width: int, *_: object, **__: object
    ) -> list[tuple[int, int, int, int]]:
        starts = [
            range(0, length // self.vae_scale_factor - self.side + 1, self.side // 2)
            for length in (panorama_height, panorama_width)
        ]
        return [(top, top + self.side, left, left + self.side) for top in starts[0] for left in starts[1]]


class _WithSizes(nn.Module):
    """SDXL's UNet for a pipeline that knows nothing of sizes and pooled states."""

    def __init__(self, unet: UNet2DConditionModel, pooled: Tensor) -> None:
        super().__init__()
        self.unet, self.pooled = unet, pooled
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **options: object
    ) -> object:
        sizes = sample.new_tensor([[1024, 1024, 0, 0, 1024, 1024]]).expand(len(sample), -1)
        added = {"text_embeds": self.pooled.expand(len(sample), -1), "time_ids": sizes}
        return self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added)


def time_panorama(pipe: StableDiffusionXLPipeline, side_px: int, steps: int) -> float:
    """Seconds a step of diffusers' panorama on this UNet, one view at a time, as it ships."""
    encode = cast(Callable[[str], tuple[Tensor, Tensor, Tensor, Tensor]], pipe.encode_prompt)
    states, free, pooled, _ = encode("")
    # Annotated as if nothing could be left out.
    build = cast(Callable[..., _Panorama], _Panorama)
    vae: object = pipe.vae  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    panorama = build(
        vae=vae, unet=_WithSizes(pipe.unet, pooled), scheduler=DDIMScheduler(),
        text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    panorama.side = pipe.unet.config.sample_size
    panorama.set_progress_bar_config(disable=True)  # pyright: ignore[reportUnknownMemberType]
    began: list[float] = []

    def note(*_: object) -> dict[str, object]:
        if pipe.device.type == "cuda":
            torch.cuda.synchronize()
        began.append(time.perf_counter())
        return {}

    run = cast(Callable[..., object], panorama)
    run(
        prompt_embeds=states, negative_prompt_embeds=free, height=side_px, width=side_px, num_inference_steps=steps + 1,
        output_type="latent", callback_on_step_end=note, circular_padding=False,
    )  # fmt: skip
    return (began[-1] - began[0]) / steps

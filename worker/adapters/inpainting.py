"""Folders of diffusers' inpainting pipelines: those of the text-to-image ones, but for a UNet that may see masks.

Beside the canvas such a UNet sees what is made and the latent of what stays, on 1 + C channels of their own (Rombach et
al. 2022, section 4.5). A plain UNet in such a folder is one of a text-to-image pipeline.
"""

from pathlib import Path

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from worker.adapters.errors import ModelFolderError
from worker.adapters.model_index import read_index, read_object


class InpaintingPipeline(StableDiffusionPipeline):
    """Of a StableDiffusionInpaintPipeline's folder."""


class InpaintingXLPipeline(StableDiffusionXLPipeline):
    """Of a StableDiffusionXLInpaintPipeline's folder."""


def is_inpainting(folder: Path) -> bool:
    """Whether the folder is one of an inpainting pipeline.

    Raises:
        ModelFolderError: its UNet is told an aesthetic score, which no request has.
    """
    asks = read_object(folder / "model_index.json").get("requires_aesthetics_score", False)
    if asks is not False:
        raise ModelFolderError(
            f"{folder}/model_index.json: requires_aesthetics_score is {asks!r}; allowed: false"
        )
    return read_index(folder).kind.endswith("InpaintPipeline")

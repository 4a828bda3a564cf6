"""The request's style picture on a plan, at the size at which tiles attend to it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyvips
import torch
from torch import Tensor

from api_schemas.generation import PicturePart
from worker.engine.canvas import Plane, Rectangle
from worker.engine.plan import GenerationPlan, StagePlan
from worker.engine.start import GivenPixels


def lay_style(plan: GenerationPlan, inputs: Mapping[PicturePart, Path], scale: int) -> GenerationPlan:
    """The plan with the style picture, for the stages that are planned to attend to one.

    Args:
        inputs: pictures that came with the request, PNG files.
        scale: pixels per latent pixel.
    """
    return replace(plan, stages=tuple(_lay_stage(stage, inputs, scale) for stage in plan.stages))


def _lay_stage(stage: StagePlan, inputs: Mapping[PicturePart, Path], scale: int) -> StagePlan:
    attention = stage.denoise.attention
    if attention is None or not attention.styled:
        return stage
    canvas = Plane(*attention.conductor)
    return replace(stage, style=GivenPixels(_Painted(inputs["style_image"], canvas.scaled(scale)), canvas))


@dataclass(frozen=True, slots=True)
class _Painted:
    """A picture, scaled; it is about one tile, so it is read again for each of its few parts."""

    path: Path
    canvas: Plane

    def __call__(self, part: Rectangle) -> Tensor:
        """RGB in [-1, 1], (3, h, w)."""
        height, width = self.canvas.size
        image = pyvips.Image.thumbnail(str(self.path), width, height=height, size="force")
        image = (image.flatten() if image.hasalpha() else image).colourspace("srgb")
        pixels = torch.as_tensor(np.array(image.numpy()))
        return part.slice(pixels.permute(2, 0, 1)).float() / 127.5 - 1

"""The request's regions on a plan: their weights on every stage's canvas."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from api_schemas.generation import PicturePart, ResolvedRequest
from api_schemas.region_masks import MaskGrid, Masks, weigh_prompts
from api_schemas.regions import MaskPart, name_masks
from worker.engine.plan import GenerationPlan, StagePlan
from worker.engine.regions import Regions

_FAINT = 0.25  # of all that counts at a pixel


def lay_regions(
    plan: GenerationPlan, request: ResolvedRequest, inputs: Mapping[PicturePart, Path]
) -> GenerationPlan:
    """The plan with the request's regions, if it has any, reduced to each stage's canvas.

    They are a function of the request and its pictures, so no checkpoint need hold them, and each rank makes its own.

    Args:
        inputs: pictures that came with the request, PNG files.
    """
    if not request.regions:
        return plan
    masks: dict[MaskPart, Image.Image] = {
        part: _read_mask(inputs[part]) for part in name_masks(request.regions)
    }
    return replace(plan, stages=tuple(_lay_stage(stage, request, masks) for stage in plan.stages))


def _read_mask(path: Path) -> Image.Image:
    with Image.open(path, formats=["PNG"]) as image:
        return image.convert("L")


def _lay_stage(stage: StagePlan, request: ResolvedRequest, masks: Masks) -> StagePlan:
    canvas = stage.canvas
    shown = canvas.height * stage.shown[0], canvas.width * stage.shown[1]
    grid = MaskGrid(canvas.size, shown, (request.height_px, request.width_px), canvas.wrap)
    weights = torch.from_numpy(weigh_prompts(request.regions, grid, masks))  # pyright: ignore[reportUnknownMemberType]
    regions = Regions.lay(weights, [None, *(region.seed for region in request.regions)], canvas)
    return replace(stage, denoise=replace(stage.denoise, regions=regions))


def find_faint_regions(plan: GenerationPlan) -> Iterator[str]:
    """Messages about regions that count almost nowhere: too small for their feather, or below others."""
    regions = plan.stages[-1].denoise.regions
    if regions is None:
        return
    strongest = regions.weights[1:].amax(dim=(1, 2))
    for index, weight in enumerate(map(float, strongest)):
        if weight < _FAINT:
            yield (
                f"regions.{index} counts for {weight:.0%} where it counts most, so its prompt hardly shows; a smaller "
                "feather_px, a larger shape or a larger weight changes that"
            )


def find_scaled_masks(request: ResolvedRequest) -> Iterator[str]:
    """Messages about masks that do not have the picture's size."""
    asked = request.width_px, request.height_px
    for part in name_masks(request.regions):
        sent = request.pictures[part]
        if (sent.width_px, sent.height_px) != asked:
            yield (
                f"{part} has {sent.width_px}x{sent.height_px} px and the picture {asked[0]}x{asked[1]} px; "
                "the mask is scaled to the picture"
            )

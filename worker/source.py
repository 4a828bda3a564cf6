"""The request's source on a plan: what its canvas begins with, what of it is inpainted, and what stays in the picture."""

from dataclasses import dataclass, replace
from math import pi
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from api_schemas.generation import BitDepth, ResolvedRequest
from worker.color_sums import recolor
from worker.colors import ColorFix
from worker.engine.canvas import Plane, Rectangle
from worker.engine.inpaint import Mask
from worker.engine.plan import GenerationPlan, Paste, StagePlan, Variation
from worker.engine.start import Given, GivenLatent, GivenPixels, Noise
from worker.source_files import SourceFiles
from worker.state_files import read_colors, read_final_state

_QUARTER_TURN = pi / 2


def lay_source(plan: GenerationPlan, request: ResolvedRequest, files: SourceFiles | None) -> GenerationPlan:
    """The plan with what the request begins with: a source, or noise beside its own seed's."""
    variations = tuple(Variation(each.seed, each.amount * _QUARTER_TURN) for each in request.variations)
    plan = replace(plan, variations=variations)
    if files is None:
        return plan
    colors = inherit_colors(request, files)
    if request.upscale is not None:
        first, *later = plan.stages
        smaller = _reach(plan.canvas.scaled(files.scale), request)
        return replace(plan, stages=(_begin_with(first, files, smaller), *later))
    first, *later = zip(plan.stages, (*files.smaller, files), strict=True)
    stages = (_begin_with(*first), *(replace(stage, kept=_give(stage, own)) for stage, own in later))
    if files.levels is None:
        paste = colors and Paste(_Recolor(colors, files.bit_depth))
        return replace(plan, stages=stages, paste=paste)
    mask = _lay_mask(files, plan.canvas)
    stages = tuple(_mask(stage, mask) for stage in stages)
    return replace(plan, stages=stages, paste=_lay_paste(files, mask, colors))


def inherit_colors(request: ResolvedRequest, files: SourceFiles | None) -> ColorFix | None:
    """What the picture that a canvas begins with was corrected by, as this one's rows are; an enlarged one has its own."""
    if files is None or files.state is None or request.upscale is not None:
        return None
    return read_colors(files.state)


def _begin_with(stage: StagePlan, files: SourceFiles, smaller: Plane | None = None) -> StagePlan:
    """With a picture that was enlarged from those pixels, if it was."""
    assert not isinstance(stage.start, Noise)
    return replace(stage, start=replace(stage.start, given=_give(stage, files, smaller)))


def _give(stage: StagePlan, files: SourceFiles, smaller: Plane | None = None) -> Given:
    if files.state is not None:
        return GivenLatent(_KeptLatent(files.state))
    canvas = stage.canvas.resized(*(side // files.scale for side in files.size))
    return GivenPixels(_Painted(files, canvas.scaled(files.scale)), canvas, smaller)


def _reach(canvas: Plane, request: ResolvedRequest) -> Plane:
    """The pixels of the source that a canvas of pixels reaches over: more than it has, where the canvas is larger than the picture."""
    assert request.source_px is not None
    width, height = request.source_px
    return canvas.resized(
        max(round(canvas.height * height / request.height_px), 1),
        max(round(canvas.width * width / request.width_px), 1),
    )


@dataclass(frozen=True, slots=True)
class _Painted:
    """The source's pixels as the encoder takes them."""

    files: SourceFiles
    canvas: Plane

    def __call__(self, part: Rectangle) -> Tensor:
        """RGB in [-1, 1], (3, h, w)."""
        pixels, half = self.files.open_pixels(), (2**self.files.bit_depth - 1) / 2
        image = np.empty((part.height, part.width, 3), np.float32)
        for outer, inner in self.canvas.pieces(part):
            rows, columns = (
                slice(outer.top, outer.top + outer.height),
                slice(outer.left, outer.left + outer.width),
            )
            image[inner.top : inner.top + inner.height, inner.left : inner.left + inner.width] = pixels[
                rows, columns
            ]
        return torch.from_numpy(image / half - 1).permute(2, 0, 1)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class _KeptLatent:
    """The clean latent of a finished picture."""

    state: Path

    def __call__(self) -> Tensor:
        return read_final_state(self.state).latent


def _mask(stage: StagePlan, mask: Mask) -> StagePlan:
    """Of a smaller canvas a latent pixel is inpainted if any is that it covers."""
    if stage.canvas != mask.canvas:
        weights = torch.nn.functional.adaptive_max_pool2d(mask.weights[None], stage.canvas.size)[0]
        mask = Mask.lay(weights, stage.canvas)
    return replace(stage, denoise=replace(stage.denoise, mask=mask))


def _lay_mask(files: SourceFiles, canvas: Plane) -> Mask:
    """A latent pixel is inpainted if any of its pixels is: what stays of it is pasted in at the end."""
    levels, scale = files.open_levels(), files.scale
    rows = [
        levels[top : top + scale].reshape(scale, canvas.width, scale).any(axis=(0, 2))
        for top in range(0, canvas.height * scale, scale)
    ]
    weights = torch.from_numpy(np.stack(rows)).float()  # pyright: ignore[reportUnknownMemberType]
    return Mask.lay(weights, canvas)


def _lay_paste(files: SourceFiles, mask: Mask, colors: ColorFix | None) -> Paste:
    moments = read_final_state(files.state).moments if files.state else None
    recolor = colors and _Recolor(colors, files.bit_depth)
    return Paste(_Overlay(files, recolor), mask.bounds, moments)


@dataclass(frozen=True, slots=True)
class _Recolor:
    """Rows (h, W, 3) with their colours corrected."""

    colors: ColorFix
    bit_depth: BitDepth

    def __call__(self, top: int, rows: Tensor) -> Tensor:
        corrected = recolor(rows.numpy(), self.colors, self.bit_depth)
        return torch.from_numpy(corrected)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class _Overlay:
    """The source's pixels over those that were made, where it stays."""

    files: SourceFiles
    recolor: _Recolor | None = None

    def __call__(self, top: int, rows: Tensor) -> Tensor:
        """Rows (h, W, 3) of the picture from `top` down; the picture is the canvas' top left part."""
        rows = self.recolor(top, rows) if self.recolor else rows
        height, width, _ = rows.shape
        part = slice(top, top + height), slice(0, width)
        own, levels = np.array(self.files.open_pixels()[part]), np.array(self.files.open_levels()[part])
        if not levels.any():
            return torch.from_numpy(own)  # pyright: ignore[reportUnknownMemberType]
        kept, levels = own.astype(np.float32), levels.astype(np.float32)
        # Of 8 and 16 bits float32 holds every difference: at levels 0 and 255 each pixel is one of the two, exactly.
        blended = kept + (rows.numpy().astype(np.float32) - kept) * (levels / 255)[..., None]
        return torch.from_numpy(blended.round().astype(rows.numpy().dtype))  # pyright: ignore[reportUnknownMemberType]

"""What every rank does for one job: conditions in, the engine's events out."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest
from api_schemas.regions import Region
from worker.adapters.add_ons import Control, IpAdapter, Lora
from worker.adapters.errors import ModelError
from worker.adapters.model import Conditions, LoadedModel, Prompt
from worker.adapters.source import AddOns
from worker.engine.denoise import Checkpoint
from worker.engine.generate import PreparedModel, Progress, generate
from worker.engine.plan import GenerationPlan
from worker.engine.ranks import Group
from worker.engine.warned import Warned
from worker.process.protocol import Generate
from worker.regions import find_faint_regions, find_scaled_masks, lay_regions
from worker.source import lay_source
from worker.source_files import SourceFiles, write_source
from worker.style import lay_style


def prepare_source(job: Generate, card: ModelCard) -> SourceFiles | None:
    """What the job begins with, as files that every rank can read; None: noise."""
    if job.request.source is None:
        return None
    return replace(write_source(job.request, card, job.inputs, job.folder), state=job.state)


def complete_plan(plan: GenerationPlan, job: Generate, source: SourceFiles | None) -> GenerationPlan:
    """The plan with what is too large to be sent to every rank: the request's regions, its source, and its style."""
    laid = lay_source(lay_regions(plan, job.request, job.inputs), job.request, source)
    return laid if source is None else lay_style(laid, job.inputs, source.scale)


def generate_job(
    model: LoadedModel,
    job: Generate,
    plan: GenerationPlan,
    resume: Checkpoint | None,
    group: Group,
    source: SourceFiles | None = None,
) -> Generator[Progress, None, None]:
    """Encode the request's conditions, then run the engine.

    Args:
        plan: with the request's regions.
        source: that the plan begins with.
    """
    conditions, prepared = yield from _prepare(model, job, source)
    yield from (Warned("mask_scaled", scaled) for scaled in find_scaled_masks(job.request))
    yield from (Warned("region_faint", faint) for faint in find_faint_regions(plan))
    yield from (Warned("prompt_cut", cut) for cut in model.find_truncated_prompts(conditions))
    yield from (Warned("compiling", shape) for shape in model.find_new_shapes(plan))
    yield from generate(plan, prepared, resume, group)


def _prepare(
    model: LoadedModel, job: Generate, source: SourceFiles | None
) -> Generator[Warned, None, tuple[Conditions, PreparedModel]]:
    """Without the ControlNet that the request did not name, if that cannot be loaded.

    Raises:
        ModelError: an add-on that it named cannot.
    """
    request = job.request
    try:
        conditions = read_conditions(model, job, source)
        return conditions, model.prepare(conditions)
    except ModelError as error:
        if request.control is None or not request.control_reason:
            raise
        left_out = f"made without ControlNet {request.control.name}, {request.control_reason}; {error}"
    bare = request.model_copy(update={"control": None, "control_reason": ""})
    conditions = read_conditions(model, replace(job, request=bare), source)
    prepared = model.prepare(conditions)
    yield Warned("control_left_out", left_out)
    return conditions, prepared


def read_conditions(model: LoadedModel, job: Generate, source: SourceFiles | None = None) -> Conditions:
    """Open the files that the request names.

    Raises:
        ModelError: an add-on is not on the allow-list, or was changed since it was put there.
    """
    request, add_ons, style = job.request, model.add_ons, job.request.active_style
    return Conditions(
        request.styled_prompt,
        request.negative_prompt,
        request.guidance_scale,
        request.advanced.positions,
        loras=tuple(Lora(add_ons.open("lora", each.name), each.weight) for each in request.loras),
        control=_open_control(job, add_ons, source),
        ip_adapter=_open_ip_adapter(job, add_ons),
        regions=tuple(_read_prompt(region, request) for region in request.regions),
        attention=model.card.choose_attention(request),
        styled=style is not None and style.has_picture,
    )


def _read_prompt(region: Region, request: ResolvedRequest) -> Prompt:
    negative = request.negative_prompt if region.negative_prompt is None else region.negative_prompt
    return Prompt(request.describe_region(region), negative)


def _open_control(job: Generate, add_ons: AddOns, source: SourceFiles | None) -> Control | None:
    control, sent = job.request.control, job.inputs.get("control_image")
    if control is None:
        return None
    path = add_ons.open("controlnet", control.name)
    if sent is None:
        assert source is not None  # the service asks for one of the two
        picture = _ShownSource(source)
    else:
        picture = _read_picture(sent)
    return Control(path, picture, control.scale, control.start, control.end)


@dataclass(frozen=True, slots=True)
class _ShownSource:
    """The source in a control picture's place; mapped, and so read tile by tile, where the device is a CPU."""

    files: SourceFiles

    def __call__(self, size: tuple[int, int]) -> Tensor:
        return torch.from_numpy(self.files.open_scaled(size)).permute(2, 0, 1)  # pyright: ignore[reportUnknownMemberType]


def _open_ip_adapter(job: Generate, add_ons: AddOns) -> IpAdapter | None:
    adapter = job.request.ip_adapter
    if adapter is None:
        return None
    shown = job.inputs["ip_adapter_image" if "ip_adapter_image" in job.inputs else "style_image"]
    path, picture = add_ons.open("ip_adapter", adapter.name), _read_picture(shown)
    return IpAdapter(path, picture, adapter.scale)


def _read_picture(path: Path) -> Tensor:
    """(3, H, W), uint8, from a PNG that the service has written."""
    with Image.open(path, formats=["PNG"]) as image:
        return torch.as_tensor(np.array(image.convert("RGB"))).permute(2, 0, 1)

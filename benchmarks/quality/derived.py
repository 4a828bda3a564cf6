"""Pictures from pictures, made as a worker makes them."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from api_schemas.generation import GenerationRequest, PicturePart, ResolvedRequest, SentPicture
from benchmarks.quality.pictures import Lines, find_lines
from service.jobs.admission import resolve
from service.jobs.sources import FoundSource, settle_source
from worker.color_sums import count_colors, fit_colors, recolor
from worker.engine.generate import FinalState
from worker.engine.ranks import SingleRank
from worker.engine.stitch import Band
from worker.planner import plan_generation
from worker.process.generation import complete_plan, generate_job, prepare_source
from worker.process.protocol import Generate
from worker.process.warmup import Ready
from worker.source_files import SourceFiles
from worker.state_files import write_final_state

_UNKNOWN = "0" * 64
Pictures = dict[PicturePart, Tensor]


def make_picture(
    ready: Ready,
    asked: Mapping[str, object],
    pictures: Pictures,
    *,
    state: Path | None = None,
    keep: Path | None = None,
) -> Tensor:
    """By the fields of a request and its pictures, (3, H, W), uint8.

    Args:
        state: final state of the picture that it begins with, as a job's.
        keep: where its own is written.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs: dict[PicturePart, Path] = {part: Path(folder) / f"{part}.png" for part in pictures}
        for part, image in pictures.items():
            save_image(image, inputs[part])
        job = Generate(_settle(ready, asked, pictures), Path(folder), None, inputs, state)
        return _run(ready, job, keep)


def list_lines(ready: Ready, asked: Mapping[str, object], pictures: Pictures) -> list[Lines]:
    """Where the seams of that picture would be."""
    plan = plan_generation(_settle(ready, asked, pictures), ready.card, ready.decode_memory, Path())
    return find_lines(plan, ready.card.vae_scale)


def save_image(image: Tensor, path: Path) -> None:
    """(3, H, W), uint8."""
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def _settle(ready: Ready, asked: Mapping[str, object], pictures: Pictures) -> ResolvedRequest:
    sent = {
        part: SentPicture(sha256=_UNKNOWN, width_px=image.shape[2], height_px=image.shape[1])
        for part, image in pictures.items()
    }
    request, source = GenerationRequest.model_validate(asked), None
    if "source_image" in sent:
        source = FoundSource((sent["source_image"].width_px, sent["source_image"].height_px))
        request = settle_source(request, source.size)
    return resolve(request, ready.card, source).request.model_copy(update={"pictures": sent})


def _run(ready: Ready, job: Generate, keep: Path | None) -> Tensor:
    bare = plan_generation(job.request, ready.card, ready.decode_memory, job.folder)
    source = prepare_source(job, ready.card)
    plan = complete_plan(bare, job, source)
    rows: list[Tensor] = []
    for event in generate_job(ready.model, job, plan, None, SingleRank()):
        match event:
            case Band(_, part):
                rows.append(part)
            case FinalState() if keep is not None:
                write_final_state(keep, event)
            case _:
                pass
    image = torch.cat(rows)
    if job.request.upscale is not None and source is not None:
        image = _correct(image, source)
    return image.permute(2, 0, 1)


def _correct(image: Tensor, source: SourceFiles) -> Tensor:
    """(H, W, 3), with the source's colours."""
    rows = image.numpy()
    made = count_colors(iter([(0, rows)]), rows.shape[:2], 8)
    colors = fit_colors(made, count_colors(source.read_strips(), source.shown, 8))
    return torch.from_numpy(recolor(rows, colors, 8))  # pyright: ignore[reportUnknownMemberType]

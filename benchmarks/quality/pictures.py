"""Pictures of a model, made as a worker makes them, and kept: what is there already is not made again."""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from api_schemas.catalog import ModelCard
from api_schemas.generation import GenerationRequest, ResolvedRequest
from benchmarks.quality.prompts import SCENES, TEXTURES
from service.jobs.admission import resolve
from worker.engine.plan import GenerationPlan
from worker.engine.ranks import SingleRank
from worker.engine.stitch import Band
from worker.engine.warned import Warned
from worker.planner import plan_generation
from worker.process.generation import generate_job
from worker.process.protocol import Generate
from worker.process.warmup import Ready

Kind = Literal["scene", "texture", "native"]
NATIVES = 4  # small pictures of a scene's prompt for each large one: they are cheap, and what is divided by
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What one picture shows; `native` is a scene of the model's own size, as one tile."""

    kind: Kind
    prompt: str
    seed: int
    side_px: int

    @property
    def name(self) -> str:
        prompts = list(TEXTURES) if self.kind == "texture" else list(SCENES)
        return f"{self.kind}-{prompts.index(self.prompt)}-{self.seed}-{self.side_px}"


class Lines(BaseModel, frozen=True):
    """Where seams would be, pixels: rows and columns, as `measure_seam` takes them."""

    name: str
    rows: list[int]
    columns: list[int]


class Source(BaseModel, frozen=True):
    """What a picture was made from: if it changes, the picture is made again."""

    request: ResolvedRequest
    weights: str


class Notes(BaseModel, frozen=True):
    """What is kept beside a picture."""

    source: Source
    seconds: float
    lines: list[Lines]


@dataclass(frozen=True, slots=True)
class Made:
    """A finished picture: `image` reads its pixels, (3, H, W) uint8."""

    subject: Subject
    path: Path
    notes: Notes

    @property
    def image(self) -> Tensor:
        return read_image(self.path)


def read_image(path: Path) -> Tensor:
    """(3, H, W), uint8."""
    with Image.open(path) as image:
        return torch.as_tensor(np.array(image.convert("RGB"))).permute(2, 0, 1)


def list_subjects(
    kinds: list[Kind], prompts: int, seeds: int, sizes: list[int], native_px: int
) -> list[Subject]:
    """The small pictures first, the large ones size by size."""
    chosen: list[Subject] = []
    if "scene" in kinds:
        chosen += _list("native", list(SCENES)[:prompts], seeds * NATIVES, native_px)
    for side_px in sizes:
        for kind, known in (("scene", list(SCENES)), ("texture", list(TEXTURES))):
            if kind in kinds:
                chosen += _list(kind, known[:prompts], seeds, side_px)
    return chosen


def _list(kind: Kind, prompts: list[str], seeds: int, side_px: int) -> list[Subject]:
    return [Subject(kind, prompt, seed, side_px) for prompt in prompts for seed in range(seeds)]


def make_pictures(
    ready: Ready, weights: str, subjects: list[Subject], settings: dict[str, object], folder: Path
) -> Iterator[Made]:
    """Make what is missing in `folder`: a PNG each, and beside it a JSON of what it was made from.

    Args:
        weights: digest of the model; another digest, or another request, and the picture is made again.
        settings: fields of the request, as `--set` gives them; the native ones have the defaults.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        request = ask(ready.card, subject, {} if subject.kind == "native" else settings)
        source = Source(request=request, weights=weights)
        path, beside = folder / f"{subject.name}.png", folder / f"{subject.name}.json"
        notes = Notes.model_validate_json(beside.read_text()) if beside.is_file() and path.is_file() else None
        if notes is None or notes.source != source:
            notes = _make(ready, source, path)
            beside.write_text(notes.model_dump_json(indent=1))
            print(f"{subject.name}: {notes.seconds:.1f} s", file=sys.stderr, flush=True)
        yield Made(subject, path, notes)


def ask(card: ModelCard, subject: Subject, settings: dict[str, object]) -> ResolvedRequest:
    """The request, resolved as the service does; textures wrap, unless `settings` say otherwise.

    Args:
        settings: values by dotted name.
    """
    fields: dict[str, object] = {
        "prompt": subject.prompt,
        "width_px": subject.side_px,
        "height_px": subject.side_px,
        "seed": subject.seed,
        "seamless": "both" if subject.kind == "texture" else "none",
    }
    return resolve(GenerationRequest.model_validate(fields | nest(settings)), card).request


def nest(settings: dict[str, object]) -> dict[str, object]:
    """`{"advanced.overlap_px": 64}` to `{"advanced": {"overlap_px": 64}}`."""
    plain: dict[str, object] = {}
    parts: dict[str, dict[str, object]] = {}
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        if rest:
            parts.setdefault(first, {})[rest] = value
        else:
            plain[first] = value
    return plain | {first: nest(inner) for first, inner in parts.items()}


def _make(ready: Ready, source: Source, path: Path) -> Notes:
    began, request = time.perf_counter(), source.request
    plan = plan_generation(request, ready.card, ready.decode_memory, path.parent)
    image = np.empty((request.height_px, request.width_px, 3), np.uint8)
    job = Generate(request, path.parent, None, {})
    for event in generate_job(ready.model, job, plan, None, SingleRank()):
        if isinstance(event, Band):
            image[event.top : event.top + len(event.rows)] = event.rows.numpy()
        elif isinstance(event, Warned):
            print(f"{request.prompt}: {event.message}", file=sys.stderr)
    seconds = time.perf_counter() - began
    Image.fromarray(image).save(path, compress_level=1)
    return Notes(source=source, seconds=seconds, lines=find_lines(plan, ready.card.vae_scale))


def find_lines(plan: GenerationPlan, scale: int) -> list[Lines]:
    """Borders of the tiles of every step of the last stage, of decode tiles, and the join of a canvas that wraps."""
    stage, canvas = plan.stages[-1], plan.canvas
    found: list[Lines] = []
    for index in range(stage.steps):
        tiles = stage.denoise.grid_at(index, stage.steps).tiles
        rows = {side for tile in tiles for side in (tile.top, tile.top + tile.height)}
        columns = {side for tile in tiles for side in (tile.left, tile.left + tile.width)}
        found.append(_scale(f"tile {index + 1}", rows, columns, plan, scale))
    step = plan.decode.tile_size
    found.append(_scale("decode", range(0, canvas.height, step), range(0, canvas.width, step), plan, scale))
    wrap = [[0] if wraps else [] for wraps in canvas.wrap]
    return [
        each
        for each in [*found, Lines(name="wrap", rows=wrap[0], columns=wrap[1])]
        if each.rows or each.columns
    ]


def _scale(name: str, rows: Iterable[int], columns: Iterable[int], plan: GenerationPlan, scale: int) -> Lines:
    """In pixels; the join is a line of its own."""
    height, width = plan.canvas.size
    return Lines(
        name=name,
        rows=sorted({row % height * scale for row in rows} - {0}),
        columns=sorted({column % width * scale for column in columns} - {0}),
    )


def digest_weights(model: str) -> str:
    """Of all weight files and settings of a folder; a model that is none has its name."""
    folder = Path(model)
    digest = hashlib.sha256(b"" if folder.is_dir() else model.encode())
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix in (".safetensors", ".json"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]

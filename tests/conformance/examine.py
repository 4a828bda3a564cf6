"""One changed folder: what diffusers makes of it, what we make of it, and which outcome that is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from tests.conformance.encodings import encode_theirs
from tests.conformance.families import SEED, load_theirs
from tests.worker.adapters.families.transformers import PROMPT, FamilyCase
from worker.adapters import loading
from worker.adapters.errors import ModelError
from worker.adapters.family_model import PreparedFamily
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.adapters.source import ModelSource
from worker.engine.canvas import Plane
from worker.engine.denoise import Step
from worker.engine.generate import generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.stitch import Band
from worker.engine.vae.encode import encode
from worker.process.warmup import make_ready

# Absolute, and relative to the largest value; a picture's is of 255, and half of that is rounded away.
TOLERANCES = {"latent": (1e-4, 1e-5), "picture": (0.51, 0.0), "encoded": (1e-4, 1e-5)}
FAINT, CLEAR = 0.1, 1.5  # in tolerances: what differs by less is no change, by more is one


@dataclass(frozen=True, slots=True)
class Made:
    """What one side made: tensors by name, or why it made none."""

    tensors: dict[str, Tensor]
    error: Exception | None = None


def make_theirs(
    case: FamilyCase, folder: Path, *, pictures: bool, parts: Mapping[str, object] = MappingProxyType({})
) -> Made:
    """With `parts` of the pipeline that are as in the folder, and loaded already."""
    try:
        return Made(dict(_make_theirs(case, load_theirs(folder, parts), pictures)))
    except Exception as error:  # whatever diffusers makes of it
        return Made({}, error)


@torch.inference_mode()
def _make_theirs(case: FamilyCase, pipe: DiffusionPipeline, pictures: bool) -> Iterator[tuple[str, Tensor]]:
    noise, scale = _noise(case, pipe), case.guidance_scales[-1]
    torch.manual_seed(SEED)  # not every pipeline hands a generator to its scheduler
    if pictures:
        picture = case.ask(pipe, noise, scale, "np", case.steps) * 255
        yield "picture", picture
        # Some folders paint in diffusers, but cannot encode.
        with suppress(TypeError, AttributeError, RuntimeError):
            yield "encoded", encode_theirs(pipe, _image(picture.shape[0], picture.shape[1]))
    else:
        yield "latent", case.ask(pipe, noise, scale, "latent", case.steps)


def make_ours(
    case: FamilyCase, folder: Path, *, pictures: bool, parts: Mapping[str, object] = MappingProxyType({})
) -> Made:
    """With `parts` that our loader made of an equal folder."""
    try:
        with lend(parts):
            return Made(dict(_make_ours(case, folder, pictures)))
    except Exception as error:  # told apart in `judge`
        return Made({}, error)


@contextmanager
def lend(parts: Mapping[str, object]) -> Iterator[None]:
    """Pipelines take these parts in place of loading equal ones; all that is read beside diffusers is read as ever."""
    load, find_missing = DiffusionPipeline.from_pretrained.__func__, loading._find_missing

    def load_others(kind: type[DiffusionPipeline], folder: str, **options: object) -> DiffusionPipeline:
        return load(kind, folder, **{**parts, **options})

    def find_in_others(part: nn.Module, folder: Path) -> list[str]:
        return [] if any(part is lent for lent in parts.values()) else find_missing(part, folder)

    with (
        patch.object(DiffusionPipeline, "from_pretrained", classmethod(load_others)),
        patch.object(loading, "_find_missing", find_in_others),
    ):
        yield


def refuse_ours(case: FamilyCase, folder: Path, parts: Mapping[str, object] = MappingProxyType({})) -> Made:
    """Begin as a worker does, with a first small picture: where diffusers fails we have to say so there.

    What only some words of a prompt show is said when the prompt is told. Which schedulers would work in place of one that
    does not takes a second each time, and is tried in test_schedulers.py.
    """
    try:
        with patch("worker.adapters.scheduler_trial.list_schedulers", return_value=[]), lend(parts):
            model = make_ready(ModelSource(str(folder)), "cpu").model
        model.prepare(Conditions(PROMPT, case.negative_prompt, case.guidance_scales[-1]))
    except Exception as error:  # told apart in `judge`
        return Made({}, error)
    return Made({})


@torch.inference_mode()
def _make_ours(case: FamilyCase, folder: Path, pictures: bool) -> Iterator[tuple[str, Tensor]]:
    model = load_model(str(folder), "cpu")
    negative_prompt = case.negative_prompt if model.card.negative_prompt else ""
    scale = case.guidance_scales[-1] if model.card.guidance else 1.0
    prepared = model.prepare(Conditions(PROMPT, negative_prompt, scale))
    assert isinstance(prepared, PreparedFamily)
    assert prepared.encoder is not None
    _, height, width = case.noise
    denoise = DenoisePlan(Plane(height, width), max(height, width), 0, 0, moving=False, seed=SEED)
    stage = StagePlan(denoise, case.steps)
    plan = GenerationPlan(SEED, model.card.latent_channels, (stage,), DecodePlan(tile_size=8))
    rows: list[Tensor] = []
    for event in generate(plan, prepared):
        if isinstance(event, Step) and event.index == event.steps - 1 and not pictures:
            yield "latent", event.checkpoint.tensors["latent"]
            return
        if isinstance(event, Band):
            rows.append(event.rows)
    picture = torch.cat(rows).float()
    yield "picture", picture
    image = _image(picture.shape[0], picture.shape[1])
    yield (
        "encoded",
        encode(
            lambda part: part.slice(image),
            prepared.encoder,
            Plane(height, width),
            DecodePlan(tile_size=8),
        ),
    )


def _noise(case: FamilyCase, pipe: DiffusionPipeline) -> Tensor:
    """Of as many channels as the changed denoiser takes, packed where the family packs."""
    denoiser = pipe.components.get("unet") or pipe.components["transformer"]
    packed = 4 if case.name.startswith(("flux-dev", "flux-schnell", "qwen-image")) else 1
    return initial_noise(SEED, denoiser.config.in_channels // packed, *case.noise[1:])


def _image(height: int, width: int) -> Tensor:
    return initial_noise(SEED + 1, 3, height, width).clamp(-1, 1)


def judge(base: Made, theirs: Made, ours: Made) -> str:
    """An outcome, or what is wrong."""
    if theirs.error is not None:
        return (
            "unusable"
            if isinstance(ours.error, ModelError)
            else f"diffusers fails ({_say(theirs.error)}), ours: {_say(ours.error)}"
        )
    if isinstance(ours.error, ModelError):
        return "refused"
    if ours.error is not None:
        return f"ours fails: {_say(ours.error)}"
    wrong = [line for name in theirs.tensors for line in _compare(name, theirs, ours)]
    return "; ".join(wrong) or _compare_with_base(base, theirs)


def _compare(name: str, theirs: Made, ours: Made) -> Iterator[str]:
    expected, actual = theirs.tensors[name], ours.tensors[name]
    if expected.shape != actual.shape:
        yield f"{name} is {tuple(actual.shape)}, diffusers' {tuple(expected.shape)}"
    elif not expected.isfinite().all():
        yield f"diffusers' {name} is not finite"
    elif (distance := _distance(name, expected, actual)) > 1:
        yield f"{name} differs by {distance:.3g} times its tolerance"


def _compare_with_base(base: Made, theirs: Made) -> str:
    change = max(_distance(name, base.tensors[name], each) for name, each in theirs.tensors.items())
    if change < FAINT:
        return "inert"
    return "honoured" if change > CLEAR else f"changes too little to say ({change:.2g}): take another value"


def _distance(name: str, expected: Tensor, actual: Tensor) -> float:
    """In tolerances."""
    if expected.shape != actual.shape:
        return float("inf")
    absolute, relative = TOLERANCES[name]
    return float((expected - actual).abs().max() / (absolute + relative * expected.abs().max()))


def _say(error: Exception | None) -> str:
    return "no error" if error is None else f"{type(error).__name__}: {str(error)[:300]}"

"""Pictures of any size: what is no multiple of a model's alignment is the corner of what diffusers makes of the next."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from api_schemas.generation import ResolvedRequest
from tests.worker.adapters.families import transformers, unets
from tests.worker.adapters.families.test_transformers import make_picture
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import Step
from worker.engine.generate import generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodeMode, DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.stitch import Band
from worker.planner import plan_generation

SEED = 9
SIZES = ((64, 64), (125, 94))  # (width, height)


@dataclass(frozen=True, slots=True)
class SizeCase:
    """One family; `ask` makes diffusers' own picture (H, W, 3), [0, 1], from noise (C, h, w)."""

    name: str
    build: Callable[[Path], DiffusionPipeline]
    conditions: Conditions
    steps: int
    ask: Callable[[DiffusionPipeline, Tensor, int], Tensor]


def of_unet(case: unets.UNetCase) -> SizeCase:
    asked = case.asked[-1]

    def ask(pipe: DiffusionPipeline, noise: Tensor, scale: int) -> Tensor:
        height, width = (side * scale for side in noise.shape[1:])
        return unets.ask(pipe, noise, asked, "np", height=height, width=width)

    return SizeCase(case.name, case.build, Conditions(unets.PROMPT, *asked), unets.STEPS, ask)


def of_transformer(case: transformers.FamilyCase) -> SizeCase:
    guidance_scale = case.guidance_scales[-1]
    conditions = Conditions(transformers.PROMPT, case.negative_prompt, guidance_scale)
    return SizeCase(
        case.name, case.build, conditions, transformers.STEPS,
        lambda pipe, noise, _: case.ask(pipe, noise, guidance_scale, "np"),
    )  # fmt: skip


CASES = [*map(of_unet, unets.CASES), *map(of_transformer, transformers.CASES)]
every_family = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@dataclass(frozen=True, slots=True)
class Built:
    pipe: DiffusionPipeline
    model: LoadedModel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SizeCase], Built]:
    known: dict[str, Built] = {}

    def build(case: SizeCase) -> Built:
        if case.name not in known:
            folder = tmp_path_factory.mktemp("models") / case.name
            pipe = case.build(folder)
            known[case.name] = Built(pipe, load_model(str(folder), "cpu"))
        return known[case.name]

    return build


def make(
    model: LoadedModel, case: SizeCase, size: tuple[int, int], native_px: int, *, steps: int, layout: str
) -> Tensor:
    """The picture (H, W, 3), uint8, in bands of 8 latent pixels."""
    request = ResolvedRequest.model_validate(
        {"model": "tiny", "width_px": size[0], "height_px": size[1], "layout": layout, "steps": steps}
        | {"guidance_scale": case.conditions.guidance_scale, "seed": SEED}
    )
    card = model.card.model_copy(update={"native_size_px": native_px})
    plan = replace(plan_generation(request, card, 1 << 30, Path()), decode=DecodePlan(tile_size=8))
    return make_picture(plan, model.prepare(case.conditions))


@every_family
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_corner_of_diffusers_own_picture(
    case: SizeCase, size: tuple[int, int], built: Callable[[SizeCase], Built]
) -> None:
    """Of a canvas of one tile: as large as the picture, or as large a part of it as the model can be given."""
    pipe, model = (tiny := built(case)).pipe, tiny.model
    card = model.card
    size = (min(size[0], card.max_tile_size_px), min(size[1], card.max_tile_size_px))
    canvas = [-(-side // card.alignment_px) * card.alignment_px for side in size]
    noise = initial_noise(SEED, card.latent_channels, *(side // card.vae_scale for side in reversed(canvas)))
    theirs = case.ask(pipe, noise, card.vae_scale)
    ours = make(model, case, size, max(canvas), steps=case.steps, layout="flat")
    assert theirs.shape == (canvas[1], canvas[0], 3)
    assert ours.shape == (size[1], size[0], 3)
    assert theirs.std() > 0.01
    assert (ours.float() - theirs[: size[1], : size[0]] * 255).abs().max() <= 0.51


@pytest.mark.parametrize("mode", ["exact", "bounded"])
def test_ranks_decode_modes_and_a_resumed_job_crop_alike(
    mode: DecodeMode, built: Callable[[SizeCase], Built]
) -> None:
    """By group normalisations over all of the canvas, also over what is not shown."""
    case = CASES[0]
    prepared = built(case).model.prepare(case.conditions)
    denoise = DenoisePlan(Plane(32, 40, (False, True)), 16, 0, 0, moving=True, seed=3)
    stage = StagePlan(denoise, 2, modules=2)
    whole = GenerationPlan(3, 4, (stage,), DecodePlan(tile_size=4, mode=mode))
    cropped = replace(whole, stages=(replace(stage, shown=(125 / 128, 1.0)),))
    picture = make_picture(whole, prepared)[:125]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda group: make_picture(cropped, prepared, group), thread_groups(2)))
    first = next(event.checkpoint for event in generate(cropped, prepared) if isinstance(event, Step))
    resumed = [event.rows for event in generate(cropped, prepared, first) if isinstance(event, Band)]
    for each in (make_picture(cropped, prepared), *together, torch.cat(resumed)):
        assert torch.equal(each, picture)


@every_family
def test_a_cascade_of_many_tiles_is_the_corner_of_the_next_aligned_one(
    case: SizeCase, built: Callable[[SizeCase], Built]
) -> None:
    """Bit for bit, by way of the encoder, whose strides the smaller canvases have to fit as well."""
    model, (width, height) = built(case).model, SIZES[1]
    unit = model.card.alignment_px
    aligned = (-(-width // unit) * unit, -(-height // unit) * unit)
    small, large = (
        make(model, case, size, 32, steps=2, layout="cascade") for size in ((width, height), aligned)
    )
    assert large.shape == (aligned[1], aligned[0], 3)
    assert torch.equal(small, large[:height, :width])

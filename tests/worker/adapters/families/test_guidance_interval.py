"""Guidance in a part of the steps alone, compared with diffusers' pipelines, whose guidance diffusers' guider switches."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import nextafter
from pathlib import Path

import pytest
import torch
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion_xl
from tests.tiny_transformers import tiny_flux, tiny_stable_diffusion_3
from tests.worker.engine.known_answer import finish
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions, LoadedModel, Prompt
from worker.adapters.registry import load_model
from worker.engine.attention import AttentionPlan
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Step, denoise
from worker.engine.ensemble import Batch, Ensemble, Replica
from worker.engine.generate import PreparedModel, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.regions import Regions
from worker.engine.start import Picture
from worker.engine.stitch import Band

PROMPT, NEGATIVE, SCALE, STEPS = "brick wall", "moss", 5.0, 8
ASKED = Conditions(PROMPT, NEGATIVE, SCALE)
OFF = nextafter(1.0, 2.0)  # 1 makes a pipeline leave the branch out for good


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    build: Callable[[Path], DiffusionPipeline]
    noise: tuple[int, int, int]


CASES = (
    Case("stable-diffusion-xl", tiny_stable_diffusion_xl, (4, 16, 16)),
    Case("stable-diffusion-3", tiny_stable_diffusion_3, (16, 16, 12)),
)


@dataclass(frozen=True, slots=True)
class Loaded:
    case: Case
    pipe: DiffusionPipeline
    model: LoadedModel


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return Loaded(request.param, request.param.build(folder), load_model(str(folder), "cpu"))


@dataclass
class Counting:
    """Counts the predictions of each batch."""

    replica: Replica
    sizes: list[int] = field(default_factory=list)

    @property
    def branches(self) -> int:
        return self.replica.branches

    def predict(self, batch: Batch) -> Tensor:
        self.sizes.append(len(batch.queries))
        return self.replica.predict(batch)

    def guide(self, predictions: Tensor) -> Tensor:
        return self.replica.guide(predictions)


def find_guided(interval: tuple[float, float]) -> list[bool]:
    """Of each step: diffusers' guider asks for two conditions where it guides."""
    guider, guided = ClassifierFreeGuidance(SCALE, start=interval[0], stop=interval[1]), list[bool]()
    for step in range(STEPS):
        guider.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(0))
        guided.append(guider.num_conditions == 2)
    return guided


def ask_diffusers(pipe: DiffusionPipeline, noise: Tensor, interval: tuple[float, float]) -> Tensor:
    """The family's own pipeline under a scale that is exactly what the guider says at each step."""

    first, *later = (SCALE if guided else OFF for guided in find_guided(interval))

    def switch(pipe: DiffusionPipeline, step: int, timestep: Tensor, told: dict[str, Tensor]) -> object:
        pipe._guidance_scale = [*later, OFF][step]
        return told

    height_px, width_px = (side * pipe.vae_scale_factor for side in noise.shape[1:])
    return pipe(
        PROMPT, negative_prompt=NEGATIVE, latents=noise[None], num_inference_steps=STEPS, output_type="latent",
        guidance_scale=first, height=height_px, width=width_px, callback_on_step_end=switch,
    ).images[0]  # fmt: skip


def one_tile(case: Case, interval: tuple[float, float]) -> DenoisePlan:
    _, height, width = case.noise
    return DenoisePlan(Plane(height, width), max(height, width), 0, 0, moving=False, seed=9, guided=interval)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.5, 0.5)])
def test_one_tile_equals_diffusers_under_its_guider(loaded: Loaded, interval: tuple[float, float]) -> None:
    noise, plan = initial_noise(9, *loaded.case.noise), one_tile(loaded.case, interval)
    prepared = loaded.model.prepare(ASKED)
    stage = StagePlan(plan, STEPS)
    replica = Counting(prepared.make_replica(stage))
    ensemble, scheduler = Ensemble(replica, plan.canvas, modules=1), prepared.make_scheduler(stage)
    ours = finish(denoise(noise * scheduler.initial_scale, plan, ensemble, scheduler, torch.Generator()))
    torch.testing.assert_close(ours, ask_diffusers(loaded.pipe, noise, interval), rtol=1e-5, atol=1e-4)
    assert replica.sizes == [1 + guided for guided in find_guided(interval)]


def test_ranks_and_a_resumed_job_make_the_same_bytes(loaded: Loaded) -> None:
    channels, side, _ = loaded.case.noise
    denoise = DenoisePlan(Plane(side, side + 4), side // 2, 0, 2, moving=True, seed=3, guided=(0.25, 0.75))
    stages = StagePlan(denoise, 4, modules=2), StagePlan(denoise, 4, Picture(4), modules=2)
    plan = GenerationPlan(3, channels, stages, DecodePlan(tile_size=8))
    prepared = loaded.model.prepare(ASKED)
    alone, checkpoints = make_picture(plan, prepared)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda group: make_picture(plan, prepared, group)[0], thread_groups(2)))
    assert all(torch.equal(alone, each) for each in together)
    for step in (1, 6):  # after each a stage goes on under guidance, and later without
        assert torch.equal(alone, make_picture(plan, prepared, resume=checkpoints[step])[0])
    always = tuple(replace(stage, denoise=replace(denoise, guided=(0.0, 1.0))) for stage in stages)
    assert not torch.equal(alone, make_picture(replace(plan, stages=always), prepared)[0])


def test_an_empty_interval_is_no_guidance_for_what_tiles_attend_to_either(loaded: Loaded) -> None:
    channels, side, _ = loaded.case.noise
    attention = AttentionPlan((side // 2, side // 2), strength=0.5, share=1.0, neighbours=True, unit=4)
    plain = DenoisePlan(
        Plane(side, side), side // 2, 0, 0, moving=True, seed=3, attention=attention, regions=lay_halves(side)
    )
    asked = replace(ASKED, attention="conductor+neighbours", regions=(Prompt("grey moss", "rust"),))

    def make(plan: DenoisePlan, conditions: Conditions) -> Tensor:
        whole = GenerationPlan(3, channels, (StagePlan(plan, 2, modules=3),), DecodePlan(tile_size=8))
        return make_picture(whole, loaded.model.prepare(conditions))[0].int()

    never, off = (
        make(replace(plain, guided=(0.5, 0.5)), asked),
        make(plain, replace(asked, guidance_scale=1.0)),
    )
    assert (never - off).abs().max() <= 1
    assert (never - make(plain, asked)).abs().max() > 1


def lay_halves(side: int) -> Regions:
    """The left half has a prompt of its own."""
    left = torch.zeros(side, side)
    left[:, : side // 2] = 1
    return Regions.lay(torch.stack([1 - left, left]), (None, None), Plane(side, side))


def make_picture(
    plan: GenerationPlan,
    prepared: PreparedModel,
    group: Group | None = None,
    resume: Checkpoint | None = None,
) -> tuple[Tensor, list[Checkpoint]]:
    rows, checkpoints = list[Tensor](), list[Checkpoint]()
    for event in generate(plan, prepared, resume, group):
        if isinstance(event, Band):
            rows.append(event.rows)
        elif isinstance(event, Step):
            checkpoints.append(event.checkpoint)
    return torch.cat(rows), checkpoints


def test_a_folder_says_its_own_interval(tmp_path: Path) -> None:
    tiny_stable_diffusion_xl(tmp_path / "xl")
    (tmp_path / "xl" / "chorale.json").write_text('{"guidance_interval": [0.2, 0.9]}')
    assert load_model(str(tmp_path / "xl"), "cpu").card.guidance_interval == (0.2, 0.9)


def test_a_folder_that_has_no_branch_to_leave_out_has_no_interval(tmp_path: Path) -> None:
    tiny_flux(tmp_path / "flux")
    (tmp_path / "flux" / "chorale.json").write_text('{"guidance_interval": [0.2, 0.9]}')
    with pytest.raises(
        ModelFolderError, match=r"chorale\.json: guidance_interval \[0\.2, 0\.9\]: null: this flux"
    ):
        load_model(str(tmp_path / "flux"), "cpu")

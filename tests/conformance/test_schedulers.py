"""Every scheduler that diffusers exports, in every family: it agrees with the family's own pipeline, or is refused."""

import inspect
import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from api_schemas.folder_settings import FolderSettings
from tests.conformance.remembered import remember_texts
from tests.conformance.summary import MATRIX
from tests.tiny_models import SCHEDULE, tiny_stable_diffusion
from tests.worker.adapters.families import transformers, unets
from tests.worker.engine.known_answer import begin, finish
from worker.adapters.errors import UnsupportedConditionError, UnsupportedSchedulerError
from worker.adapters.families import stable_diffusion, stable_diffusion_xl
from worker.adapters.family import Family
from worker.adapters.family_model import FamilyModel
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.adapters.scheduler_trial import try_scheduler
from worker.adapters.schedulers import SchedulerUse, make_scheduler
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Step, denoise
from worker.engine.generate import PreparedModel, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DenoisePlan, GenerationPlan, StagePlan
from worker.engine.stitch import Band
from worker.process.warmup import warm_up
from worker.state_files import read_checkpoint, write_checkpoint

SEED, STEPS = unets.SEED, unets.STEPS
# What a folder that names one of these must say beside.
REQUIRED = {
    "AmusedScheduler": {"mask_token_id": 0},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
    "RFD4ProteinaScheduler": {"schedule_mode": "power", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
}
# diffusers itself can only import these with a package that is not ours.
NEEDS_MORE = {"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"}
EPSILON = {**SCHEDULE, "prediction_type": "epsilon"}
VELOCITY = {**SCHEDULE, "prediction_type": "v_prediction"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "shift": 3.0}


@dataclass(frozen=True, slots=True)
class Kind:
    """One family's pipeline, and what its folder says of any scheduler.

    Args:
        load: the adapter's.
        ask: (pipeline, noise) -> diffusers' latent (C, h, w).
        conditions: the same as ours are told.
    """

    name: str
    build: Callable[[Path], DiffusionPipeline]
    load: Callable[[Path, torch.device], Family]
    noise: tuple[int, int, int]
    ask: Callable[[DiffusionPipeline, Tensor], Tensor]
    conditions: Conditions
    config: dict[str, object]


def _of_unet(
    case: unets.UNetCase, load: Callable[[Path, torch.device], Family], config: dict[str, object]
) -> Kind:
    asked = ("moss", 5.0)
    return Kind(
        case.name, case.build, load, unets.NOISE, lambda pipe, noise: unets.ask(pipe, noise, asked),
        Conditions(unets.PROMPT, *asked), config,
    )  # fmt: skip


def _of_transformer(case: transformers.FamilyCase, config: dict[str, object]) -> Kind:
    scale = case.guidance_scales[-1]
    return Kind(
        case.name, case.build, case.load, case.noise, lambda pipe, noise: case.ask(pipe, noise, scale, "latent"),
        Conditions(transformers.PROMPT, case.negative_prompt, scale), config,
    )  # fmt: skip


KINDS = (
    _of_unet(unets.CASES[0], stable_diffusion.load, EPSILON),
    _of_unet(unets.CASES[1], stable_diffusion.load, VELOCITY),
    _of_unet(unets.CASES[2], stable_diffusion_xl.load, EPSILON),
    *(_of_transformer(case, EPSILON if case.name == "pixart-sigma" else FLOW) for case in transformers.CASES),
)
# A scheduler's state is its own, whatever family it steps for: one of each kind of prediction resumes with all of them.
RESUMED = (KINDS[0], KINDS[1], KINDS[3])
ALL = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax"))


def _build(name: str, config: dict[str, object]) -> SchedulerMixin:
    made = _build_once(name, json.dumps(config))
    return deepcopy(made, {id(made.config): made.config})  # which is frozen, and cannot be copied


@cache
def _build_once(name: str, config: str) -> SchedulerMixin:
    """Some take a quarter of a second."""
    kind = getattr(diffusers, name)
    given = json.loads(config) | REQUIRED.get(name, {})
    taken = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in given.items() if key in taken})


# What agrees; all others are refused. A scheduler that is new in diffusers fails here until somebody looked at it.
_DISCRETE = {
    "CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler",
    "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
}  # fmt: skip
_SIGMAS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "UniPCMultistepScheduler"}
_FREE_FLOW = {
    "CMStochasticIterativeScheduler", "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "IPNDMScheduler", "LTXEulerAncestralRFScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
}  # fmt: skip
WORKING: dict[str, set[str]] = {
    **dict.fromkeys(
        ["stable-diffusion", "stable-diffusion-2.1", "stable-diffusion-xl", "pixart-sigma"], _DISCRETE
    ),
    **dict.fromkeys(["stable-diffusion-3", "sana"], _FREE_FLOW),
    "z-image": {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler"},
    **dict.fromkeys(
        ["flux-dev", "flux-schnell", "qwen-image", "flux-2", "flux-2-klein", "flux-2-klein-few"], _SIGMAS
    ),
}
CELLS = [
    pytest.param(kind, name, id=f"{kind.name}-{name}")
    for kind in KINDS for name in ALL if name not in NEEDS_MORE
]  # fmt: skip
Loaded = Callable[[Kind], tuple[DiffusionPipeline, Family, FamilyModel]]
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """diffusers' pipeline, our family and our model, of the same weights."""
    known: dict[str, tuple[DiffusionPipeline, Family, FamilyModel]] = {}

    def load(kind: Kind) -> tuple[DiffusionPipeline, Family, FamilyModel]:
        if kind.name not in known:
            folder = tmp_path_factory.mktemp("models") / kind.name
            pipe, family = kind.build(folder), kind.load(folder, torch.device("cpu"))
            for each in (pipe, family.pipe):
                remember_texts(each.components)
            known[kind.name] = pipe, family, FamilyModel(family, FolderSettings(), kind.name)
        return known[kind.name]

    return load


@pytest.mark.parametrize(("kind", "name"), CELLS)
def test_a_scheduler_agrees_with_the_familys_own_pipeline_or_is_refused(
    kind: Kind, name: str, load: Loaded, record_property: Record, tmp_path: Path
) -> None:
    pipe, family, model = load(kind)
    if name not in WORKING[kind.name]:
        scheduler = _build(name, kind.config)
        with pytest.raises(Exception):  # noqa: B017, PT011
            _try(family, scheduler)
        record_property(MATRIX, ("schedulers", "refused"))
        return
    pipe.scheduler, ours = (_build(name, kind.config) for _ in range(2))
    family.pipe.register_modules(scheduler=ours)
    _try(family, ours)
    noise = initial_noise(SEED, *kind.noise)
    torch.manual_seed(SEED)  # pipelines of transformers have no generator for their scheduler
    theirs = kind.ask(pipe, noise)
    assert (theirs - noise).abs().max() > 0.1
    prepared = model.prepare(kind.conditions)
    torch.testing.assert_close(_denoise(prepared, noise), theirs, rtol=3e-6, atol=1e-4)
    if kind in RESUMED:
        _require_same_from_any_checkpoint(prepared, kind, tmp_path)
    record_property(MATRIX, ("schedulers", "agree"))


def _require_same_from_any_checkpoint(prepared: PreparedModel, kind: Kind, folder: Path) -> None:
    events = list(generate(_plan_one_tile(kind), prepared))
    checkpoints = [event.checkpoint for event in events if isinstance(event, Step)]
    for number, (checkpoint, following) in enumerate(pairwise(checkpoints)):
        write_checkpoint(folder / f"{number}", checkpoint, 0.0)
        # All state of the next step: what it makes alike goes on alike.
        resumed = _find_next(prepared, kind, read_checkpoint(folder / f"{number}")[0])
        # A table of schedulers of second order holds what is not a number.
        assert resumed.step == following.step
        torch.testing.assert_close(resumed.tensors, following.tensors, rtol=0, atol=0, equal_nan=True)
    write_checkpoint(folder / "last", checkpoints[-1], 0.0)
    rest = generate(_plan_one_tile(kind), prepared, read_checkpoint(folder / "last")[0])
    assert torch.equal(_join(rest), _join(events))


def _try(family: Family, scheduler: SchedulerMixin) -> None:
    """As it is tried when a folder is loaded, with fewer steps; consistency models' scheduler takes 40 at most."""
    side = family.shape.native_size_px // family.shape.scale
    try_scheduler(
        scheduler, family.use_scheduler(StagePlan(_one_tile(side, side), min(family.defaults.steps, 20)))
    )


def _one_tile(height: int, width: int) -> DenoisePlan:
    return DenoisePlan(Plane(height, width), max(height, width), 0, 0, moving=False, seed=SEED)


def _denoise(prepared: PreparedModel, noise: Tensor) -> Tensor:
    """The clean latent of a canvas of one tile."""
    plan = _one_tile(*noise.shape[1:])
    ensemble, scheduler = begin(prepared, StagePlan(plan, STEPS))
    generator = torch.Generator().manual_seed(SEED)
    return finish(denoise(noise * scheduler.initial_scale, plan, ensemble, scheduler, generator))


def _find_next(prepared: PreparedModel, kind: Kind, resume: Checkpoint) -> Checkpoint:
    events = generate(_plan_one_tile(kind), prepared, resume)
    return next(event.checkpoint for event in events if isinstance(event, Step))


def _join(events: Iterable[object]) -> Tensor:
    """The picture."""
    return torch.cat([event.rows for event in events if isinstance(event, Band)])


def _plan_one_tile(kind: Kind) -> GenerationPlan:
    channels, height, width = kind.noise
    return GenerationPlan(SEED, channels, (StagePlan(_one_tile(height, width), STEPS),))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind.name}-{name}")
        for kind in RESUMED for name in sorted(WORKING[kind.name])
    ],
)  # fmt: skip
def test_no_number_of_steps_ends_in_the_middle(kind: Kind, name: str, load: Loaded) -> None:
    """It is refused before the first, by name and number, or all steps can be done."""
    _, family, _ = load(kind)
    kept, (_, height, width) = _build(name, kind.config), kind.noise
    for steps in (1, 2, 3, 7, 51):
        use = family.use_scheduler(StagePlan(_one_tile(height, width), steps))
        try:
            scheduler = make_scheduler(kept, use, torch.device("cpu"))
        except UnsupportedConditionError:
            continue
        latent, generator = torch.zeros(4, 4, 4), torch.Generator()
        for index in range(len(scheduler.timesteps)):
            latent = scheduler.step(
                torch.zeros(4, 4, 4), index, scheduler.scale_input(latent, index), generator
            )
        assert latent.isfinite().all()


@pytest.mark.parametrize(
    "asked", [{"shift_terminal": 0.02}, {"shift_terminal": 0.02, "use_beta_sigmas": True}], ids=str
)
def test_a_number_of_steps_that_has_no_timesteps_is_refused_before_the_first(
    asked: dict[str, object],
) -> None:
    kept = diffusers.FlowMatchEulerDiscreteScheduler(**asked)
    with pytest.raises(UnsupportedConditionError, match="steps: 1 is not possible with FlowMatchEuler"):
        make_scheduler(kept, SchedulerUse(1), torch.device("cpu"))
    assert len(make_scheduler(kept, SchedulerUse(2), torch.device("cpu")).timesteps) == 2


def test_every_scheduler_is_counted() -> None:
    assert set(ALL) >= NEEDS_MORE | set.union(*WORKING.values())
    assert len(ALL) >= 49


def test_a_folder_with_a_scheduler_that_does_not_work_is_refused_with_those_that_do(tmp_path: Path) -> None:
    _with_scheduler(tmp_path / "tiny", diffusers.DPMSolverMultistepInverseScheduler(**EPSILON))
    with pytest.raises(UnsupportedSchedulerError) as caught:
        load_model(str(tmp_path / "tiny"), "cpu")
    message = str(caught.value)
    assert message.startswith(
        "scheduler: DPMSolverMultistepInverseScheduler, as its configuration is, does not"
    )
    allowed = set(message.rpartition("allowed, with the same configuration: ")[2].split(", "))
    assert (
        {"PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"}
        <= allowed
        <= WORKING["stable-diffusion"]
    )


def test_a_folder_with_a_scheduler_that_takes_many_steps_says_how_many(tmp_path: Path) -> None:
    """Four Runge-Kutta steps come before PNDM's linear ones; the worker's own small picture takes as many."""
    _with_scheduler(tmp_path / "tiny", diffusers.PNDMScheduler(**EPSILON))
    model = load_model(str(tmp_path / "tiny"), "cpu")
    assert (model.card.min_steps, model.card.max_steps) == (4, 200)
    assert warm_up(model, torch.device("cpu")).tile_s > 0


def test_a_folder_with_a_scheduler_that_takes_few_steps_says_how_many(tmp_path: Path) -> None:
    """Latent consistency's schedule was distilled from 50."""
    _with_scheduler(tmp_path / "tiny", diffusers.LCMScheduler(**EPSILON))
    card = load_model(str(tmp_path / "tiny"), "cpu").card
    assert (card.max_steps, card.max_schedule_steps) == (50, 50)


def _with_scheduler(folder: Path, scheduler: SchedulerMixin) -> None:
    pipe = tiny_stable_diffusion(folder)
    pipe.register_modules(scheduler=scheduler)
    pipe.save_pretrained(folder)

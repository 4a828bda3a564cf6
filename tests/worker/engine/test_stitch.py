"""Rows of 8 and of 16 bits."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from tests.tiny_models import tiny_stable_diffusion, tiny_vae
from tests.worker.engine.known_answer import KnownAnswer, Untiled, maker
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.autoencoders.decoder import flatten_decoder
from worker.adapters.autoencoders.scaling import read_scaling
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.denoise import Checkpoint, Step
from worker.engine.generate import PreparedModel, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.stitch import Band

ONE_TILE = DenoisePlan(Plane(16, 16), 16, 0, 0, moving=False, seed=9)
EIGHT = GenerationPlan(9, 4, (StagePlan(ONE_TILE, 3),), DecodePlan(tile_size=8, mode="exact", memory_bytes=1))
SIXTEEN = replace(EIGHT, bit_depth=16)


def paint(
    plan: GenerationPlan,
    prepared: PreparedModel,
    resume: Checkpoint | None = None,
    group: Group | None = None,
) -> torch.Tensor:
    events = generate(plan, prepared, resume, group)
    return torch.cat([event.rows for event in events if isinstance(event, Band)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    return folder


def prepare(folder: Path) -> PreparedModel:
    return load_model(str(folder), "cpu").prepare(Conditions("dune", guidance_scale=2.0))


def test_sixteen_bits_are_those_of_diffusers_own_floats(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    noise = initial_noise(9, 4, 16, 16)
    theirs = pipe(
        "dune", latents=noise[None], num_inference_steps=3, guidance_scale=2.0, output_type="np"
    ).images[0]
    ours = paint(SIXTEEN, prepare(folder))
    assert ours.dtype == torch.uint16
    expected = (torch.from_numpy(theirs).double() * 65_535).round()
    assert (ours.double() - expected).abs().max() <= 1


def test_eight_bits_are_the_upper_half_of_sixteen(folder: Path) -> None:
    eight, sixteen = paint(EIGHT, prepare(folder)), paint(SIXTEEN, prepare(folder))
    assert eight.dtype == torch.uint8
    assert ((sixteen.int() >> 8) - eight.int()).abs().max() <= 1
    assert len(sixteen.int().unique()) > 10 * len(eight.unique())


def known_picture(vae: AutoencoderKL) -> PreparedModel:
    """Whatever the noise, it ends at one latent."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    answer = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(5))
    return Untiled(
        KnownAnswer(answer, scheduler),
        maker(scheduler),
        flatten_decoder(vae, read_scaling(StableDiffusionPipeline, vae)),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_half_weights_sixteen_bits_are_decoded_in_float32(dtype: torch.dtype) -> None:
    """bfloat16's own decode has no more than 8 bits to show."""
    half = tiny_vae().to(dtype)
    wide = tiny_vae().to(dtype).to(torch.float32)
    found = paint(SIXTEEN, known_picture(half))
    assert torch.equal(found.int(), paint(SIXTEEN, known_picture(wide)).int())
    assert len(found.int().unique()) > 1000
    assert half.dtype == dtype


def test_ranks_make_the_same_sixteen_bits() -> None:
    whole = paint(SIXTEEN, known_picture(tiny_vae()))
    prepared_models = [known_picture(tiny_vae()) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        pictures = pool.map(
            lambda prepared, group: paint(SIXTEEN, prepared, group=group), prepared_models, thread_groups(3)
        )
    assert all(torch.equal(each.int(), whole.int()) for each in pictures)


def test_a_resumed_job_makes_the_same_sixteen_bits(folder: Path) -> None:
    events = list(generate(SIXTEEN, prepare(folder)))
    whole = torch.cat([event.rows for event in events if isinstance(event, Band)])
    stopped = generate(SIXTEEN, prepare(folder))
    kept = next(event.checkpoint for event in stopped if isinstance(event, Step) and event.index == 1)
    assert torch.equal(paint(SIXTEEN, prepare(folder), kept).int(), whole.int())

from pathlib import Path

import pytest
import torch

from tests.tiny_models import tiny_stable_diffusion_xl
from tests.worker.adapters.test_stable_diffusion import ONE_TILE
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.adapters.stable_diffusion_xl import StableDiffusionXLReplica, load
from worker.engine.denoise import denoise
from worker.engine.generate import generate
from worker.engine.grid import Tile
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.schedule import initial_scale
from worker.engine.stitch import Band

STEPS = 4
MANY_TILES = DenoisePlan(24, 40, (True, False), 16, 0, 4, moving=True, seed=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-xl"
    tiny_stable_diffusion_xl(folder)
    return folder


@pytest.mark.parametrize("consistency", [False, True])
@pytest.mark.parametrize(("negative_prompt", "guidance_scale"), [("", 1.0), ("", 5.0), ("moss", 5.0)])
def test_one_tile_equals_diffusers_own_pipeline(
    tmp_path: Path, consistency: bool, negative_prompt: str, guidance_scale: float
) -> None:
    pipe = tiny_stable_diffusion_xl(tmp_path / "tiny", consistency=consistency)
    if consistency:
        negative_prompt = ""
    noise = initial_noise(9, 4, 16, 16)
    theirs = pipe(
        "brick wall", negative_prompt=negative_prompt or None, latents=noise[None], num_inference_steps=STEPS,
        guidance_scale=guidance_scale, output_type="latent", generator=torch.Generator().manual_seed(9),
    ).images[0]  # fmt: skip
    conditions = Conditions("brick wall", negative_prompt, guidance_scale)
    ensemble, scheduler = (
        load_model(str(tmp_path / "tiny"), "cpu").prepare(conditions).begin(StagePlan(ONE_TILE, STEPS))
    )
    ours = noise * initial_scale(scheduler)
    list(denoise(ours, ONE_TILE, ensemble, scheduler, torch.Generator().manual_seed(9)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_many_tiles_do_not_depend_on_how_many_are_sung_at_once(folder: Path) -> None:
    model = load_model(str(folder), "cpu")
    alone, together = (_sing(model.prepare(Conditions("dune", "", 5.0)), modules) for modules in (1, 4))
    assert (alone.int() - together.int()).abs().max() <= 1
    assert torch.equal(alone, _sing(model.prepare(Conditions("dune", "", 5.0)), 1))
    assert alone.float().std() > 1


def _sing(singer: object, modules: int) -> torch.Tensor:
    plan = GenerationPlan(9, 4, (StagePlan(MANY_TILES, STEPS, modules=modules),), DecodePlan(tile_size=16))
    return torch.cat([event.rows for event in generate(plan, singer) if isinstance(event, Band)])


def test_a_tile_is_told_where_on_the_canvas_it_lies(folder: Path) -> None:
    """The truth about a tile changes what it is predicted to be."""
    family = load(folder, torch.device("cpu"))
    replica = family.encode(Conditions("dune"))(StagePlan(MANY_TILES, STEPS))
    assert isinstance(replica, StableDiffusionXLReplica)
    tiles = [Tile(0, 0, 16, 16), Tile(8, 24, 16, 16)]
    assert [replica._describe(tile) for tile in tiles] == [
        (96, 160, 0, 0, 64, 64), (96, 160, 32, 96, 64, 64),
    ]  # fmt: skip
    crops = initial_noise(9, 4, 16, 16).expand(2, -1, -1, -1)
    with torch.inference_mode():
        first, second = replica.predict(crops, torch.tensor(500), tiles, [0, 0])
    assert not torch.allclose(first, second)

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from tests.tiny_models import tiny_stable_diffusion
from tests.worker.engine.known_answer import Soloist
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.model import Conditions
from worker.adapters.stable_diffusion import load
from worker.adapters.toy import CHANNELS, Toy, toy_decoder
from worker.engine.denoise import Step, denoise
from worker.engine.ensemble import Replica
from worker.engine.errors import NonFiniteLatentError
from worker.engine.generate import Singer, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.stitch import Band
from worker.engine.sync import Group

GRIDS = DenoisePlan(32, 64, (False, False), 16, 0, 0, moving=True, seed=3)


def plan(
    tile_size: int, *, overlap: int = 0, wrap: bool = False, moving: bool = True, modules: int = 2
) -> GenerationPlan:
    denoise = DenoisePlan(32, 64, (wrap, wrap), tile_size, overlap, overlap, moving, seed=3)
    return GenerationPlan(3, CHANNELS, (StagePlan(denoise, 4, modules=modules),), DecodePlan(tile_size=16))


def picture(plan: GenerationPlan, singer: Singer) -> torch.Tensor:
    return torch.cat([event.rows for event in generate(plan, singer) if isinstance(event, Band)])


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("wrap", [True, False])
def test_tiled_equals_untiled_for_a_pointwise_model(moving: bool, wrap: bool) -> None:
    tiled, whole = plan(8, overlap=2, wrap=wrap, moving=moving), plan(64, moving=False)
    pictures = [picture(each, Toy().prepare(Conditions("waves"))) for each in (tiled, whole)]
    assert torch.equal(*pictures)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    family = load(folder, torch.device("cpu"))
    return family.encode(Conditions("brick wall", guidance_scale=3.0))(StagePlan(GRIDS, 4))


def choir(replica: Replica, group: Group | None = None) -> Soloist:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(4)
    return Soloist(replica, scheduler, toy_decoder(), group)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("modules", [1, 2])
def test_bytes_do_not_depend_on_how_tiles_are_shared_out(replica: Replica, ranks: int, modules: int) -> None:
    alone = picture(plan(16, modules=modules), choir(replica))
    groups = thread_groups(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        together = pool.map(lambda group: picture(plan(16, modules=modules), choir(replica, group)), groups)
    assert all(torch.equal(alone, each) for each in together)


@pytest.mark.parametrize("modules", [2, 8])
def test_another_batch_shape_changes_at_most_one_level(replica: Replica, modules: int) -> None:
    alone, batched = (picture(plan(16, modules=each), choir(replica)).int() for each in (1, modules))
    assert (alone - batched).abs().max() <= 1


def test_tiles_listen_to_each_other(replica: Replica) -> None:
    """What one tile is given reaches tiles that never cover it, but not before the second step."""
    first, last = (_difference_from_a_touched_corner(replica, steps) for steps in (1, 4))
    assert first[:, 16:, :].abs().max() == first[:, :, 16:].abs().max() == 0
    assert last[:, :, 24:].abs().max() > 0


def _difference_from_a_touched_corner(replica: Replica, steps: int) -> torch.Tensor:
    plain = initial_noise(3, CHANNELS, 32, 64)
    touched = plain.clone()
    touched[:, :4, :4] += 1
    for latent in (plain, touched):
        ensemble, scheduler = choir(replica).begin(StagePlan(GRIDS, 4))
        loop = denoise(latent, GRIDS, ensemble, scheduler, torch.Generator())
        done = (event for event in loop if isinstance(event, Step))
        for _ in range(steps):
            next(done)
    return plain - touched


class Broken:
    """Says NaN at the third step and after."""

    branches = 1

    def guide(self, predictions: torch.Tensor) -> torch.Tensor:
        return predictions[0]

    def predict(
        self, crops: torch.Tensor, timestep: torch.Tensor, tiles: object, branches: object
    ) -> torch.Tensor:
        return crops * (torch.nan if int(timestep) < 300 else 1.0)


def test_a_broken_step_is_named() -> None:
    with pytest.raises(NonFiniteLatentError, match="step 3 of 4, timestep 250"):
        picture(plan(16), choir(Broken()))

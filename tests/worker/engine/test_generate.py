import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.stable_diffusion import load_stable_diffusion
from worker.adapters.toy import CHANNELS, Toy
from worker.engine.denoise import Step, denoise
from worker.engine.ensemble import Ensemble, Replica
from worker.engine.errors import NonFiniteLatentError
from worker.engine.generate import Pipeline, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan
from worker.engine.stitch import Band


def plan(
    tile_size: int, *, overlap: int = 0, wrap: bool = False, moving: bool = True, channels: int = CHANNELS
) -> GenerationPlan:
    denoise = DenoisePlan(32, 64, (wrap, wrap), tile_size, overlap, overlap, moving, seed=3)
    return GenerationPlan(3, channels, denoise, DecodePlan(tile_size=16))


def picture(plan: GenerationPlan, pipeline: Pipeline) -> torch.Tensor:
    return torch.cat([event.rows for event in generate(plan, pipeline) if isinstance(event, Band)])


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("wrap", [True, False])
def test_tiled_equals_untiled_for_a_pointwise_model(moving: bool, wrap: bool) -> None:
    tiled, whole = plan(8, overlap=2, wrap=wrap, moving=moving), plan(64, moving=False)
    pictures = [picture(each, Toy().pipeline("waves", "", 1.0, 5, 2)) for each in (tiled, whole)]
    assert torch.equal(*pictures)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    model = load_stable_diffusion(folder, torch.device("cpu"))
    return model.pipeline("brick wall", "", 3.0, 1, 1).ensemble._replicas[0]


def choir(replica: Replica, replicas: int, modules_per_replica: int) -> Pipeline:
    toy = Toy().pipeline("", "", 1.0, 1, 1)
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(4)
    return Pipeline(
        Ensemble([replica] * replicas, modules_per_replica), scheduler, toy.decoder, torch.device("cpu")
    )


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("modules_per_replica", [1, 2])
def test_bytes_do_not_depend_on_how_tiles_are_shared_out(
    replica: Replica, replicas: int, modules_per_replica: int
) -> None:
    alone = picture(plan(16), choir(replica, 1, modules_per_replica))
    together = picture(plan(16), choir(replica, replicas, modules_per_replica))
    assert torch.equal(alone, together)


@pytest.mark.parametrize("modules_per_replica", [2, 8])
def test_another_batch_shape_changes_at_most_one_level(replica: Replica, modules_per_replica: int) -> None:
    alone = picture(plan(16), choir(replica, 1, 1)).int()
    batched = picture(plan(16), choir(replica, 1, modules_per_replica)).int()
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
    grids = DenoisePlan(32, 64, (False, False), 16, 0, 0, moving=True, seed=3)
    for latent in (plain, touched):
        pipeline = choir(replica, 1, 1)
        loop = denoise(latent, grids, pipeline.ensemble, pipeline.scheduler, torch.Generator())
        done = (event for event in loop if isinstance(event, Step))
        for _ in range(steps):
            next(done)
    return plain - touched


class Broken:
    """Says NaN at the third step and after."""

    def predict(self, crops: torch.Tensor, timestep: torch.Tensor, tiles: object) -> torch.Tensor:
        return crops * (torch.nan if int(timestep) < 300 else 1.0)


def test_a_broken_step_is_named() -> None:
    with pytest.raises(NonFiniteLatentError, match="step 3 of 4, timestep 250"):
        picture(plan(16), choir(Broken(), 1, 1))

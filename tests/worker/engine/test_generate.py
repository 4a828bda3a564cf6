from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from tests.tiny_models import tiny_stable_diffusion
from tests.worker.engine.known_answer import Untiled, begin, maker
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.families.stable_diffusion import load
from worker.adapters.model import Conditions
from worker.adapters.toy import CHANNELS, Toy, toy_decoder
from worker.engine.canvas import Plane
from worker.engine.denoise import Step, denoise
from worker.engine.ensemble import Batch, Replica
from worker.engine.errors import NonFiniteLatentError
from worker.engine.generate import PreparedModel, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group
from worker.engine.stitch import Band

GRIDS = DenoisePlan(Plane(32, 64), 16, 0, 0, moving=True, seed=3)


def plan(
    tile_size: int, *, overlap: int = 0, wrap: bool = False, moving: bool = True, modules: int = 2
) -> GenerationPlan:
    denoise = DenoisePlan(Plane(32, 64, (wrap, wrap)), tile_size, overlap, overlap, moving, seed=3)
    return GenerationPlan(3, CHANNELS, (StagePlan(denoise, 4, modules=modules),), DecodePlan(tile_size=16))


def picture(plan: GenerationPlan, prepared: PreparedModel, group: Group | None = None) -> torch.Tensor:
    events = generate(plan, prepared, group=group)
    return torch.cat([event.rows for event in events if isinstance(event, Band)])


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


def untiled(replica: Replica) -> Untiled:
    return Untiled(replica, maker(DDIMScheduler(clip_sample=False)), toy_decoder())


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("modules", [1, 2])
def test_bytes_do_not_depend_on_how_tiles_are_shared_out(replica: Replica, ranks: int, modules: int) -> None:
    alone = picture(plan(16, modules=modules), untiled(replica))
    groups = thread_groups(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        together = pool.map(lambda group: picture(plan(16, modules=modules), untiled(replica), group), groups)
    assert all(torch.equal(alone, each) for each in together)


@pytest.mark.parametrize("modules", [2, 8])
def test_another_batch_shape_changes_at_most_one_level(replica: Replica, modules: int) -> None:
    alone, batched = (picture(plan(16, modules=each), untiled(replica)).int() for each in (1, modules))
    assert (alone - batched).abs().max() <= 1


def test_tiles_influence_each_other(replica: Replica) -> None:
    """What one tile is given reaches tiles that never cover it, but not before the second step."""
    first, last = (_difference_from_a_touched_corner(replica, steps) for steps in (1, 4))
    assert first[:, 16:, :].abs().max() == first[:, :, 16:].abs().max() == 0
    assert last[:, :, 24:].abs().max() > 0


def _difference_from_a_touched_corner(replica: Replica, steps: int) -> torch.Tensor:
    plain = initial_noise(3, CHANNELS, 32, 64)
    touched = plain.clone()
    touched[:, :4, :4] += 1
    canvases: list[torch.Tensor] = []
    for latent in (plain, touched):
        ensemble, scheduler = begin(untiled(replica), StagePlan(GRIDS, 4))
        loop = denoise(latent, GRIDS, ensemble, scheduler, torch.Generator())
        done = [event.checkpoint for event in loop if isinstance(event, Step)]
        canvases.append(done[steps - 1].tensors["latent"])
    return canvases[0] - canvases[1]


class Broken:
    """Says NaN from the third step on, in the tile that begins at a place."""

    branches = 1

    def guide(self, predictions: torch.Tensor) -> torch.Tensor:
        return predictions[0]

    def predict(self, batch: Batch) -> torch.Tensor:
        late = batch.timesteps < 300
        broken = late & torch.tensor([(tile.top, tile.left) == (16, 32) for tile in batch.tiles])
        return batch.crops.masked_fill(broken[:, None, None, None], torch.nan)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_broken_step_and_tile_are_named_by_every_rank(ranks: int) -> None:
    place = "rows 16 to 32, columns 32 to 48"
    message = rf"step 3 of 4, timestep 250: tile 7 of 8 \({place} of the latent\) is not finite"
    with ThreadPoolExecutor(ranks) as pool:
        pictures = [
            pool.submit(picture, plan(16, moving=False), untiled(Broken()), group)
            for group in thread_groups(ranks)
        ]
        for each in pictures:
            with pytest.raises(NonFiniteLatentError, match=message):
                each.result()


@dataclass
class Narrow:
    """Has memory for so many predictions at a time, and counts how many came."""

    replica: Replica
    largest: int
    batches: list[int] = field(default_factory=list)

    @property
    def branches(self) -> int:
        return self.replica.branches

    def guide(self, predictions: torch.Tensor) -> torch.Tensor:
        return self.replica.guide(predictions)

    def predict(self, batch: Batch) -> torch.Tensor:
        self.batches.append(len(batch.queries))
        if len(batch.queries) > self.largest:
            raise torch.OutOfMemoryError("no memory")
        return self.replica.predict(batch)


def test_ranks_halve_their_batches_together_where_one_lacks_memory(replica: Replica) -> None:
    narrow = [Narrow(replica, 3), Narrow(replica, 99)]
    alone = picture(plan(16, modules=1), untiled(replica))
    with ThreadPoolExecutor(2) as pool:
        together = pool.map(
            lambda largest, group: picture(plan(16, modules=4), untiled(largest), group),
            narrow,
            thread_groups(2),
        )
        assert all(torch.equal(alone, each) for each in together)
    assert narrow[0].batches[:3] == narrow[1].batches[:3] == [8, 4, 2]
    assert set(narrow[0].batches[3:]) == set(narrow[1].batches[3:]) == {2}

"""A part of a canvas is made, the rest stays."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import diffusers
import pytest
import torch
from torch import Tensor

from tests.worker.adapters.test_schedulers import SCHEDULERS
from tests.worker.engine.known_answer import maker
from tests.worker.engine.test_cascade import KnownAnswers, answer
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.model import Conditions
from worker.adapters.toy import SCALE, Toy
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Checkpoint, Step, TilePredicted
from worker.engine.generate import FinalState, Progress, generate
from worker.engine.inpaint import Mask
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.start import GivenLatent, GivenPixels, LowBandPlan, Picture
from worker.engine.stitch import Band

CANVAS = Plane(24, 32, (True, False))
KEPT = torch.randn(2, *CANVAS.size, generator=torch.Generator().manual_seed(3))
QUICK = [each for each in SCHEDULERS if each[0] != "KDPM2DiscreteScheduler"]  # it takes a second to set up


def cover(canvas: Plane, part: Rectangle) -> Mask:
    """All of a part is made, and half of a pixel to the left of it."""
    weights = torch.zeros(canvas.size)
    for piece, _ in canvas.pieces(part):
        piece.slice(weights).fill_(1)
    weights[:, part.left - 1] = weights[:, part.left] / 2
    return Mask.lay(weights, canvas)


MASK = cover(CANVAS, Rectangle(20, 5, 9, 8))
MADE = MASK.weights > 0
PLAN = GenerationPlan(
    11,
    2,
    (
        StagePlan(
            DenoisePlan(CANVAS, 8, 0, 2, moving=True, seed=11, outer_shares=(0.2, 0.2), mask=MASK),
            3,
            Picture(3, given=GivenLatent(lambda: KEPT)),
            modules=2,
        ),
    ),
)


def latent(events: list[Progress] | Iterator[Progress]) -> Tensor:
    """The final one."""
    (found,) = (event.latent for event in events if isinstance(event, FinalState))
    return found


def checkpoints(events: list[Progress]) -> list[Checkpoint]:
    return [event.checkpoint for event in events if isinstance(event, Step)]


@pytest.mark.parametrize(("name", "options"), QUICK)
def test_what_stays_is_the_reference_and_what_is_made_the_known_answer(
    name: str, options: dict[str, object]
) -> None:
    prepared = KnownAnswers(name, options)
    events = list(generate(PLAN, prepared))
    inpainted = latent(events)
    assert torch.equal(inpainted[:, ~MADE], KEPT[:, ~MADE])
    whole = MASK.weights == 1  # where TCD leaves some of its own noise
    assert (inpainted - answer(*CANVAS.size))[:, whole].abs().max() < 0.1
    resumed = generate(PLAN, prepared, checkpoints(events)[1])
    assert torch.equal(latent(resumed), inpainted)


@pytest.mark.parametrize("skipped", [0, 2])
@pytest.mark.parametrize(
    ("name", "options"), [each for each in QUICK if each[0] not in ("IPNDMScheduler", "PNDMScheduler")]
)
def test_what_stays_is_as_noisy_as_diffusers_inpainting_makes_it(
    name: str, options: dict[str, object], skipped: int
) -> None:
    """After every step, as StableDiffusionInpaintPipeline does; of 100 steps of Karras' some have one timestep.

    IPNDM cannot add noise, and a tail of PNDM's steps has other timesteps here: it repeats its own second one.
    """
    steps = 100 if options.get("use_karras_sigmas") else 6
    theirs, ours = getattr(diffusers, name)(**options), maker(getattr(diffusers, name)(**options))(steps)
    theirs.set_timesteps(steps)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(skipped * theirs.order)
    ours.skip(skipped)
    noise, latent = KEPT.flip(0), torch.zeros_like(KEPT)
    timesteps = theirs.timesteps[skipped * theirs.order :]
    add = getattr(theirs, "scale_noise", None) or (
        lambda clean, timestep, noise: theirs.add_noise(clean, noise, timestep)
    )
    for index, timestep in enumerate(timesteps):
        if hasattr(theirs, "scale_model_input"):
            theirs.scale_model_input(latent, timestep)
        ours.scale_input(latent, index)
        theirs.step(torch.zeros_like(latent), timestep, latent)
        ours.step(torch.zeros_like(latent), index, latent, torch.Generator())
        if index + 1 < len(timesteps):
            wanted = add(KEPT[None], timesteps[index + 1 : index + 2], noise[None])[0]
            assert torch.equal(ours.add_noise(KEPT, noise, index + 1), wanted)
    assert torch.equal(ours.add_noise(KEPT, noise, len(timesteps)), KEPT)


def test_only_tiles_that_the_mask_touches_are_predicted() -> None:
    events = list(generate(PLAN, KnownAnswers("EulerDiscreteScheduler", {})))
    denoise = PLAN.stages[0].denoise
    for index in range(3):
        asked = [e.tile for e in events if isinstance(e, TilePredicted) and e.index == index]
        grid = denoise.grid_at(index, 3).tiles
        touched = [
            tile
            for tile in grid
            if MADE[[row % 24 for row in range(tile.top, tile.top + tile.height)]][
                :, tile.left : tile.left + tile.width
            ].any()
        ]
        assert asked == touched
        assert 0 < len(asked) < len(grid)
    assert [e.tiles for e in events if isinstance(e, Step)] == denoise.count_tiles(3)


def test_where_nothing_is_made_the_reference_comes_back() -> None:
    nothing = replace(PLAN.stages[0].denoise, mask=Mask.lay(torch.zeros(CANVAS.size), CANVAS))
    plan = replace(PLAN, stages=(replace(PLAN.stages[0], denoise=nothing),))
    events = list(generate(plan, KnownAnswers("DPMSolverMultistepScheduler", {})))
    assert torch.equal(latent(events), KEPT)
    assert not any(isinstance(event, TilePredicted) for event in events)


def test_a_low_band_is_not_led_astray_by_what_is_not_predicted() -> None:
    """A model that wants just the reference and is led to just that ends there."""
    wanted = answer(*CANVAS.size)
    start = Picture(3, LowBandPlan(1.0, 1.0, 0.4), GivenLatent(lambda: wanted))
    plan = replace(PLAN, stages=(replace(PLAN.stages[0], start=start),))
    found = latent(generate(plan, KnownAnswers("EulerDiscreteScheduler", {})))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def paint(part: Rectangle) -> Tensor:
    """Waves that join at the edges of a picture of 24 x 32 latent pixels."""
    rows = torch.arange(part.top, part.top + part.height) % (24 * SCALE) * (2 * torch.pi / (24 * SCALE))
    columns = torch.arange(part.left, part.left + part.width) % (32 * SCALE) * (2 * torch.pi / (32 * SCALE))
    return torch.stack([0.5 * torch.sin(rows[:, None] + number * columns) for number in range(3)])


@pytest.mark.parametrize("wrap", [(False, False), (True, True)])
def test_neither_ranks_nor_a_kill_change_a_byte(wrap: tuple[bool, bool]) -> None:
    canvas = replace(CANVAS, wrap=wrap)
    mask = cover(canvas, Rectangle(20, 5, 9, 8) if wrap[0] else Rectangle(10, 5, 9, 8))
    denoise = DenoisePlan(canvas, 8, 2, 2, moving=True, seed=4, mask=mask)
    start = Picture(2, LowBandPlan(), GivenPixels(paint, canvas))
    stage = StagePlan(denoise, 4, start, modules=2, sync_strength=0.7)
    plan = GenerationPlan(4, 4, (stage,), DecodePlan(tile_size=8))
    prepared = Toy().prepare(Conditions("dunes"))

    def rows(events: list[Progress] | Iterator[Progress]) -> Tensor:
        return torch.cat([event.rows for event in events if isinstance(event, Band)])

    alone = list(generate(plan, prepared))
    for size in (2, 4):
        with ThreadPoolExecutor(size) as pool:
            together = pool.map(
                lambda group: rows(generate(plan, prepared, group=group)), thread_groups(size)
            )
        assert all(torch.equal(each, rows(alone)) for each in together)
    for checkpoint in checkpoints(alone):
        assert torch.equal(rows(generate(plan, prepared, checkpoint)), rows(alone))


def test_a_blanked_picture_is_grey_where_it_is_made() -> None:
    part = Rectangle(-8, 24, 40, 64)
    blanked = MASK.blank(paint, SCALE)(part)
    picture = CANVAS.scaled(SCALE)
    made = picture.gather(MADE.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1), part)
    assert torch.equal(blanked, torch.where(made, 0.0, paint(part)))
    assert made.any()
    assert not made.all()

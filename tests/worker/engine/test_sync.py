"""Sync of statistics: against AdaIN's formula, for every kind of prediction, and what must not change."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.worker.engine.test_cascade import LARGE, KnownAnswers, canvas, picture
from tests.worker.engine.thread_group import thread_groups
from worker.adapters.schedulers import SchedulerUse, make_scheduler
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Step
from worker.engine.generate import generate
from worker.engine.inpaint import Inpainting, Mask
from worker.engine.plan import GenerationPlan, StagePlan
from worker.engine.scheduler import Scheduler
from worker.engine.sync import Sync

CPU = torch.device("cpu")
SIDE = 96


def make_kind(kind: str) -> Scheduler:
    if kind == "flow":
        flow = FlowMatchEulerDiscreteScheduler()
        return make_scheduler(flow, SchedulerUse(4), CPU)
    return make_scheduler(DDIMScheduler(prediction_type=kind), SchedulerUse(4), CPU)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sync_clean(
    clean: Tensor,
    strength: float,
    canvas: Plane,
    kind: str = "v_prediction",
    *,
    evenly: bool = True,
    regions: Tensor | None = None,
    inpainting: Inpainting | None = None,
) -> Tensor:
    """What a clean estimate becomes, by way of a prediction that implies it."""
    scheduler, index = make_kind(kind), 1
    latent = draw(*clean.shape, seed=1)
    start = scheduler.estimate_clean(latent, torch.zeros_like(latent), index)
    prediction = scheduler.guide_clean(torch.zeros_like(latent), clean - start, index)
    assert scheduler.estimate_clean(latent, prediction, index).sub(clean).abs().max() < 1e-4
    sync = Sync(strength, canvas, evenly=evenly, regions=regions, inpainting=inpainting)
    synced = sync.guide(prediction, latent, scheduler, index)
    return scheduler.estimate_clean(latent, synced, index)


def drift(side: int = SIDE) -> Tensor:
    """Noise whose tone and contrast grow from left to right."""
    ramp = torch.linspace(0.5, 2.0, side)
    return draw(2, side, side) * ramp + ramp


@pytest.mark.parametrize("kind", ["v_prediction", "flow"])
def test_what_is_inpainted_takes_on_the_tone_and_contrast_of_what_stays_and_nothing_else_changes(
    kind: str,
) -> None:
    canvas, weights = Plane(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    weights[:, 32:] = 1
    kept, clean = 3 * draw(2, SIDE, SIDE, seed=2) + 2, 2 * draw(2, SIDE, SIDE, seed=3) - 1
    inpainting = Inpainting(Mask.lay(weights, canvas), kept, torch.zeros_like(kept))
    synced = sync_clean(clean, 1.0, canvas, kind, inpainting=inpainting)
    torch.testing.assert_close(synced[:, :, :32], clean[:, :, :32], rtol=0, atol=1e-4)
    assert abs(synced[:, :, 48:].mean() - 2) < 0.1
    assert abs(synced[:, :, 48:].std() - 3) < 0.15


def test_what_is_far_from_what_is_inpainted_does_not_count() -> None:
    """On a ring, over whose edge its surroundings lie."""
    canvas, weights = Plane(208, 208, (True, True)), torch.zeros(208, 208)
    weights[:8, :8] = 1
    part, clean = canvas.halo(Rectangle(0, 0, 8, 8), 64)[0], draw(2, 208, 208, seed=3)
    near = canvas.gather(draw(2, 208, 208, seed=2), part)
    found: list[Tensor] = []
    for level in (0.0, 50.0):
        kept = torch.full((2, 208, 208), level)
        for outer, inner in canvas.pieces(part):
            outer.slice(kept).copy_(inner.slice(near))
        inpainting = Inpainting(Mask.lay(weights, canvas), kept, torch.zeros_like(kept))
        found.append(sync_clean(clean, 1.0, canvas, inpainting=inpainting))
    assert torch.equal(*found)
    assert (found[0] - clean)[:, weights == 0].abs().max() < 1e-4
    assert (found[0] - clean)[:, weights == 1].abs().min(0).values.mean() > 0.01


def test_a_part_of_what_differs_from_place_to_place_has_no_example() -> None:
    """Noise is a texture; with the tones of a sky above it, it is none. What is made does not count."""
    canvas, weights = Plane(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    weights[:32, :32] = 1
    texture = draw(4, SIDE, SIDE)
    sky, hole = texture.clone(), texture.clone()
    sky[:, : SIDE // 2] += 1
    hole[:, :32, :32] += 9
    found = [
        Sync(1.0, canvas, inpainting=Inpainting(Mask.lay(weights, canvas), kept, torch.zeros_like(kept)))
        for kept in (texture, hole, sky)
    ]
    assert [each.has_example() for each in found] == [True, True, False]


def spread(clean: Tensor, measure: Callable[[Tensor], Tensor]) -> float:
    cells = clean.unfold(1, 32, 32).unfold(2, 32, 32).flatten(3)
    return float(measure(cells).std())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_any_kind_of_prediction_implies_the_same_clean_latent(kind: str) -> None:
    canvas = Plane(SIDE, SIDE)
    wanted = sync_clean(drift(), 1.0, canvas, "v_prediction")
    assert torch.allclose(sync_clean(drift(), 1.0, canvas, kind), wanted, atol=1e-3)


def test_tone_and_contrast_agree_more_the_stronger_it_is() -> None:
    results = [sync_clean(drift(), strength, Plane(SIDE, SIDE)) for strength in (0.01, 0.5, 1.0)]
    for weaker, stronger in pairwise(results):
        assert spread(stronger, lambda cells: cells.mean(-1)) < 0.7 * spread(weaker, lambda c: c.mean(-1))
        assert spread(stronger, lambda cells: cells.std(-1)) < 0.9 * spread(weaker, lambda c: c.std(-1))


def test_two_flat_halves_of_noise_become_what_adain_makes_of_them() -> None:
    """Far from their border: (x - mean) / deviation · wanted deviation + wanted mean, Huang & Belongie 2017, eq. 8."""
    height, width = 192, 384
    noise = draw(1, height, width).numpy()
    left, right = noise[..., : width // 2], noise[..., width // 2 :]
    clean = np.concatenate([left * 0.8 - 1.0, right * 1.6 + 1.0], axis=2)
    wanted_deviation = np.sqrt((0.8**2 + 1.6**2) / 2)
    adain = np.concatenate([(left - left.mean()) / left.std(), (right - right.mean()) / right.std()], axis=2)
    wanted = adain * wanted_deviation + clean.mean()
    synced = sync_clean(torch.from_numpy(clean), 1.0, Plane(height, width)).numpy()
    inner = np.s_[:, 32:-32, 32:128]
    # Windows of finite noise have statistics of their own, which are evened out as well.
    error = np.abs(synced[inner] - wanted[inner]).mean()
    assert error < 0.2 * np.abs(clean[inner] - wanted[inner]).mean()


@pytest.mark.parametrize("canvas", [Plane(SIDE, SIDE), Plane(SIDE, SIDE, (True, True)), Plane(40, 100)])
def test_what_is_alike_everywhere_stays(canvas: Plane) -> None:
    flat = torch.ones(2, *canvas.size) * torch.tensor([0.3, -2.0])[:, None, None]
    assert torch.allclose(sync_clean(flat, 1.0, canvas), flat, atol=1e-4)


def test_a_far_corner_is_felt_in_every_other() -> None:
    plane, clean = Plane(SIDE, SIDE), drift()
    changed = clean.clone()
    changed[:, :16, :16] += 3
    before, after = (sync_clean(each, 1.0, plane) for each in (clean, changed))
    assert (after - before)[:, -8:, -8:].abs().min() > 1e-3


@pytest.mark.parametrize("evenly", [True, False])
def test_a_canvas_that_wraps_has_no_edge(evenly: bool) -> None:
    plane, clean = Plane(SIDE, SIDE, (True, True)), drift()
    moved = sync_clean(clean.roll((16, 24), (1, 2)), 1.0, plane, evenly=evenly)
    assert torch.allclose(
        moved, sync_clean(clean, 1.0, plane, evenly=evenly).roll((16, 24), (1, 2)), atol=1e-4
    )


def draw_sky_and_ground() -> Tensor:
    """Two halves of other tone; in each the contrast is twice as high on one side."""
    contrast = torch.tensor([0.5, 1.0]).repeat_interleave(SIDE // 2)
    tone = torch.tensor([3.0, -3.0]).repeat_interleave(SIDE // 2)[:, None]
    return draw(2, SIDE, SIDE) * contrast + tone


def measure_contrast(clean: Tensor) -> Tensor:
    """Of the four quarters' middles, (2, 2)."""
    parts = [[clean[:, top : top + 16, left : left + 16].std() for left in (12, 68)] for top in (12, 68)]
    return torch.tensor(parts)


def test_ground_agrees_with_ground_and_not_with_sky() -> None:
    clean = draw_sky_and_ground()
    synced = sync_clean(clean, 1.0, Plane(SIDE, SIDE), evenly=False)
    assert (synced[:, :32].mean() - 3).abs() < 0.3
    assert (synced[:, -32:].mean() + 3).abs() < 0.3
    before, after = measure_contrast(clean), measure_contrast(synced)
    assert ((after[:, 1] / after[:, 0]) < 0.8 * before[:, 1] / before[:, 0]).all()


def test_regions_do_not_attend_to_each_other() -> None:
    clean, plane = drift(), Plane(SIDE, SIDE)
    left = torch.zeros(SIDE, SIDE)
    left[:, : SIDE // 2] = 1
    changed = clean.clone()
    changed[:, :, :24] += draw(2, SIDE, 24, seed=3)
    before, after = (
        sync_clean(each, 1.0, plane, evenly=False, regions=torch.stack([1 - left, left]))
        for each in (clean, changed)
    )
    # Not zero: tones are compared in deviations of the whole canvas.
    assert (after - before)[:, :, 64:].abs().max() < 0.1
    assert (after - before)[:, :, 32:44].abs().max() > 0.1


def test_a_canvas_with_more_windows_than_are_attended_to() -> None:
    plane = Plane(8 * 33, 8 * 40)
    flat = torch.ones(2, *plane.size) * torch.tensor([0.3, -2.0])[:, None, None]
    assert torch.allclose(sync_clean(flat, 1.0, plane, evenly=False), flat, atol=1e-3)


MODEL = KnownAnswers("DDIMScheduler", {"prediction_type": "v_prediction"})
SYNCED = GenerationPlan(11, 2, (StagePlan(LARGE, 5, sync_strength=1.0),))


def test_a_synced_picture_is_another_one_and_the_same_for_any_ranks() -> None:
    alone = picture(generate(SYNCED, MODEL))
    plain = replace(SYNCED, stages=(replace(SYNCED.stages[0], sync_strength=0.0),))
    assert not torch.equal(alone, picture(generate(plain, MODEL)))
    with ThreadPoolExecutor(2) as pool:
        together = pool.map(lambda group: picture(generate(SYNCED, MODEL, group=group)), thread_groups(2))
        assert all(torch.equal(alone, each) for each in together)


def test_a_synced_picture_resumed_anywhere_equals_never_stopped() -> None:
    events = list(generate(SYNCED, MODEL))
    for checkpoint in [event.checkpoint for event in events if isinstance(event, Step)]:
        assert torch.equal(picture(events), picture(generate(SYNCED, MODEL, checkpoint)))


def test_a_canvas_of_one_tile_is_not_changed() -> None:
    whole = replace(SYNCED.stages[0], denoise=replace(LARGE, tile_size=32))
    plain = replace(whole, sync_strength=0.0)
    synced, alone = (canvas(generate(replace(SYNCED, stages=(each,)), MODEL)) for each in (whole, plain))
    assert torch.equal(synced, alone)

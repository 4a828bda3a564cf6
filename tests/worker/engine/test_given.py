"""A stage that begins with a given picture, with neighbouring noise, and a picture that is pasted into an earlier one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import cos, pi
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion
from tests.worker.adapters.test_schedulers import SCHEDULERS
from tests.worker.engine.test_cascade import KnownAnswers
from tests.worker.engine.test_inpaint import latent, paint
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.adapters.toy import SCALE, Toy
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Step
from worker.engine.generate import FinalState, PreparedModel, Progress, generate
from worker.engine.noise import initial_noise
from worker.engine.plan import BitDepth, DecodePlan, DenoisePlan, GenerationPlan, Paste, StagePlan, Variation
from worker.engine.regions import Regions
from worker.engine.start import GivenLatent, GivenPixels, Noise, Picture
from worker.engine.stitch import Band

CANVAS = Plane(24, 32, (True, False))
KEPT = torch.randn(2, *CANVAS.size, generator=torch.Generator().manual_seed(3))
GRIDS = DenoisePlan(CANVAS, 16, 0, 4, moving=True, seed=11, outer_shares=(0.2, 0.2))

QUICK = [each for each in SCHEDULERS if each[0] != "KDPM2DiscreteScheduler"]  # it takes a second to set up


def begin(skipped: int, steps: int) -> GenerationPlan:
    start = Picture(skipped, given=GivenLatent(lambda: KEPT))
    return GenerationPlan(11, 2, (StagePlan(GRIDS, steps, start),))


def picture(events: Iterator[Progress]) -> Tensor:
    """Its bands, which have to lie one below the other."""
    bands = [event for event in events if isinstance(event, Band)]
    assert [band.top for band in bands] == [sum(len(b.rows) for b in bands[:i]) for i in range(len(bands))]
    return torch.cat([band.rows for band in bands])


@pytest.mark.parametrize(("name", "options"), QUICK)
def test_the_whole_schedule_lets_nothing_of_the_picture_through(
    name: str, options: dict[str, object]
) -> None:
    plan, prepared = begin(0, 4), KnownAnswers(name, options)
    plain = replace(plan, stages=(replace(plan.stages[0], start=Noise()),))
    assert torch.equal(latent(generate(plan, prepared)), latent(generate(plain, prepared)))


@pytest.mark.parametrize(("name", "options"), QUICK)
def test_none_of_the_schedule_leaves_the_picture_as_it_is(name: str, options: dict[str, object]) -> None:
    events = list(generate(begin(4, 0), KnownAnswers(name, options)))
    assert torch.equal(latent(events), KEPT)
    assert not any(isinstance(event, Step) for event in events)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> PreparedModel:
    return load_model(str(folder), "cpu").prepare(Conditions("brick wall"))


def through_autoencoder(canvas: Plane) -> GenerationPlan:
    denoise = DenoisePlan(canvas, 16, 0, 0, moving=False, seed=5)
    stage = StagePlan(denoise, 0, Picture(2, given=GivenPixels(paint, canvas)))
    return GenerationPlan(5, 4, (stage,), DecodePlan(tile_size=8, mode="exact"))


def test_without_a_step_the_picture_is_what_diffusers_own_autoencoder_makes_of_it(
    folder: Path, prepared: PreparedModel
) -> None:
    vae = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None).vae
    ours = picture(generate(through_autoencoder(Plane(16, 24)), prepared))
    with torch.inference_mode():
        theirs = vae.decode(vae.encode(paint(Rectangle(0, 0, 64, 96))[None]).latent_dist.mean).sample[0]
    expected = (theirs / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
    assert (ours.float() - expected).abs().max() <= 0.51
    assert expected.std() > 1


def test_the_toys_autoencoder_gives_a_picture_of_its_pixels_size_back() -> None:
    canvas = Plane(24, 32)

    def paint_cells(part: Rectangle) -> Tensor:
        rows = torch.arange(part.top, part.top + part.height) // SCALE * SCALE
        columns = torch.arange(part.left, part.left + part.width) // SCALE * SCALE
        return paint(Rectangle(0, 0, 24 * SCALE, 32 * SCALE))[:, rows][:, :, columns]

    stage = StagePlan(
        DenoisePlan(canvas, 16, 0, 0, moving=False, seed=5),
        0,
        Picture(2, given=GivenPixels(paint_cells, canvas)),
    )
    ours = picture(generate(GenerationPlan(5, 4, (stage,)), Toy().prepare(Conditions("dunes"))))
    expected = (paint_cells(canvas.scaled(SCALE).whole).permute(1, 2, 0) + 1) * 127.5
    assert (ours.float() - expected).abs().max() <= 0.51


ANGLES = (0.3, pi / 4, pi / 2)


@pytest.mark.parametrize("angle", ANGLES)
def test_neighbouring_noise_is_as_strong_and_as_alike_as_the_angle_says(angle: float) -> None:
    """Within four standard errors of what 262,144 numbers tell."""
    own, other = initial_noise(1, 4, 256, 256), initial_noise(2, 4, 256, 256)
    mixed = Variation(2, angle).mix(own, other)
    assert abs(float(mixed.var()) - 1) < 4 * (2 / own.numel()) ** 0.5
    alike = float(torch.corrcoef(torch.stack([mixed.flatten(), own.flatten()]))[0, 1])
    assert abs(alike - cos(angle)) < 4 / own.numel() ** 0.5


def test_a_variation_changes_the_noise_of_every_place_and_none_by_an_angle_of_0() -> None:
    """Also where a region has a seed of its own. What comes of a step of 0 sigma is the noise itself."""
    weights = torch.zeros(2, *CANVAS.size)
    weights[0, :, :16], weights[1, :, 16:] = 1, 1
    regions = Regions.lay(weights, (None, 77), CANVAS)
    stage = StagePlan(replace(GRIDS, regions=regions), 2)
    plan = GenerationPlan(11, 4, (stage,))
    prepared = Toy().prepare(Conditions("dunes", regions=(Conditions("tide").prompts[0],)))

    def first(plan: GenerationPlan) -> Tensor:
        return next(e.checkpoint.tensors["latent"] for e in generate(plan, prepared) if isinstance(e, Step))

    plain = first(plan)
    assert torch.equal(first(replace(plan, variations=(Variation(5, 0.0),))), plain)
    assert (first(replace(plan, variations=(Variation(5, 0.4),))) != plain).all()


PART = Rectangle(12, 18, 9, 7)  # over the edges of a canvas of 16 x 24


def keep(earlier: Tensor, made: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Rows of the earlier picture (H, W, 3) where nothing is made (H, W)."""

    def overlay(top: int, rows: Tensor) -> Tensor:
        own = slice(top, top + len(rows))
        return torch.where(made[own, :, None], rows.int(), earlier[own].int()).to(rows.dtype)

    return overlay


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("wrap", [(True, True), (False, True)])
@pytest.mark.parametrize("shown", [(1.0, 1.0), (57 / 64, 90 / 96)])
def test_a_pasted_part_changes_no_byte_outside_and_inside_is_decoded_as_all_would_be(
    prepared: PreparedModel, bit_depth: BitDepth, wrap: tuple[bool, bool], shown: tuple[float, float]
) -> None:
    canvas = Plane(16, 24, wrap)
    part = PART if wrap[0] else replace(PART, top=3)
    whole = replace(through_autoencoder(canvas), bit_depth=bit_depth)
    whole = replace(whole, stages=(replace(whole.stages[0], shown=shown),))
    (state,) = (event for event in generate(whole, prepared) if isinstance(event, FinalState))
    decoded = picture(generate(whole, prepared))
    height, width, _ = decoded.shape
    made = torch.zeros(64, 96, dtype=torch.bool)
    for piece, _ in canvas.pieces(part):
        piece.scaled(4).slice(made).fill_(True)
    made = made[:height, :width]
    earlier = torch.randint(2**bit_depth, decoded.shape, generator=torch.Generator().manual_seed(1))
    paste = Paste(keep(earlier, made), part, state.moments)
    pasted = picture(generate(replace(whole, paste=paste), prepared)).int()
    assert (height, width) == (round(64 * shown[0]), round(96 * shown[1]))
    assert torch.equal(pasted[~made], earlier[~made].int())
    assert torch.equal(pasted[made], decoded[made].int())
    assert not torch.equal(decoded[~made].int(), earlier[~made].int())


def test_only_what_is_pasted_is_decoded(prepared: PreparedModel) -> None:
    whole = through_autoencoder(Plane(16, 24, (True, True)))
    paste = Paste(lambda top, rows: rows, Rectangle(1, 9, 6, 6))
    rows = picture(generate(replace(whole, paste=paste), prepared))
    grey = (rows == 128).all(-1)
    assert all(part.all() for part in (grey[32:], grey[:, :32], grey[:, 64:]))
    assert not grey[:32, 32:64].any()

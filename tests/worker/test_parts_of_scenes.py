"""A part of a scene is made as the whole was: small first, with the rest around it, then enlarged where it lies."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from api_schemas.catalog import ModelCard
from api_schemas.generation import GenerationRequest, ResolvedRequest, SentPicture
from api_schemas.stages import lay_stages
from service.jobs.admission import resolve
from service.jobs.query_count import count_queries
from tests.tiny_upscaler import tiny_upscaling_model
from tests.worker.engine.test_inpaint import checkpoints
from worker.adapters.model import Conditions, LoadedModel
from worker.adapters.registry import load_model
from worker.engine.denoise import TilePredicted
from worker.engine.generate import Progress, generate
from worker.engine.plan import GenerationPlan
from worker.engine.stitch import Band
from worker.planner import plan_generation
from worker.process.generation import complete_plan, prepare_source
from worker.process.protocol import Generate
from worker.settings import WorkerSettings

Pixels = npt.NDArray[np.uint8]
BUNDLED = Path(WorkerSettings.model_fields["model"].get_default(call_default_factory=True))
SIDE = 256
PART = {"left_px": 32, "top_px": 48, "width_px": 40, "height_px": 64}
INSIDE = slice(48, 112), slice(32, 72)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Its leads have 64 px a side, and a part of 256 px lies on few of the full-size tiles."""
    return load_model(str(tiny_upscaling_model(tmp_path_factory.mktemp("models") / "tiny")), "cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright above, dark below."""
    path = tmp_path_factory.mktemp("sent") / "source_image.png"
    rows = np.linspace(230, 20, SIDE).astype(np.uint8)
    Image.fromarray(np.broadcast_to(rows[:, None, None], (SIDE, SIDE, 3)).copy()).save(path)
    return path


def ask(card: ModelCard, **changes: object) -> ResolvedRequest:
    asked = {
        "width_px": SIDE, "height_px": SIDE, "seed": 3, "steps": 5, "guidance_scale": 1.0, "source": {}, "strength": 1.0,
        "mask": {"rectangle": PART, "feather_px": 0},
    }  # fmt: skip
    request = GenerationRequest.model_validate(asked | changes)
    resolved = resolve(request, card).request
    sent = SentPicture(sha256="", width_px=request.width_px, height_px=request.height_px)
    return resolved.model_copy(update={"pictures": {"source_image": sent}})


def plan(card: ModelCard, request: ResolvedRequest, source: Path, folder: Path) -> GenerationPlan:
    job = Generate(request, folder, None, {"source_image": source}, None)
    bare = plan_generation(request, card, 1 << 30, folder)
    return complete_plan(bare, job, prepare_source(job, card))


def rows(events: list[Progress]) -> Tensor:
    return torch.cat([event.rows for event in events if isinstance(event, Band)])


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("conditioned", [True, False])
def test_a_part_has_the_stages_of_the_whole_and_only_its_tiles(
    conditioned: bool, strength: float, model: LoadedModel, source: Path, tmp_path: Path
) -> None:
    """The lead is one tile that sees all of the picture; outside of the part all pixels stay; no kill changes a byte."""
    cascade = model.card.cascade.model_copy(update={"conditioned": conditioned})
    card = model.card.model_copy(update={"cascade": cascade})
    request = ask(card, strength=strength)
    whole = lay_stages(card, request.model_copy(update={"source": None, "mask": None, "strength": None}))
    laid = plan(card, request, source, tmp_path)
    assert [stage.canvas.size for stage in laid.stages] == [
        (each.height_px // card.vae_scale, each.width_px // card.vae_scale) for each in whole
    ]
    counts = [stage.denoise.count_tiles(stage.steps) for stage in laid.stages]
    assert count_queries(request, card, lay_stages(card, request), (SIDE, SIDE)) == list(map(sum, counts))
    prepared = model.prepare(Conditions(request.prompt))
    events = list(generate(laid, prepared))
    tiles = [event.tile for event in events if isinstance(event, TilePredicted)]
    assert len(tiles) == sum(map(sum, counts))
    first, last = laid.stages[0].denoise, laid.stages[-1].denoise
    assert set(tiles[: sum(counts[0])]) == {first.canvas.whole}
    assert last.mask is not None
    assert all(last.mask.touches(tile) for tile in tiles[sum(counts[0]) :])
    made, own = rows(events).numpy(), np.asarray(Image.open(source))
    assert np.abs(made[INSIDE].astype(int) - own[INSIDE]).mean() > 1
    made = made.copy()
    made[INSIDE] = own[INSIDE]
    assert np.array_equal(made, own)
    for checkpoint in checkpoints(events)[1 : -1 : len(counts[0]) - 1]:  # within each stage
        assert torch.equal(rows(list(generate(laid, prepared, checkpoint))), rows(events))


def test_a_part_of_a_scene_continues_what_is_around_it(tmp_path: Path) -> None:
    """Across its border tones differ about as much as before, and it is no blur: at full size alone they differ 4.6 times as much."""
    bundled = load_model(str(BUNDLED), "cpu")
    card = bundled.card.model_copy(update={"native_size_px": 256})
    before = np.asarray(Image.open(BUNDLED / "scenes.jpg").crop((0, 0, 512, 512)))
    sent = tmp_path / "source_image.png"
    Image.fromarray(before).save(sent)
    part = {"left_px": 160, "top_px": 160, "width_px": 192, "height_px": 192}
    request = ask(
        card,
        prompt="mountains above a lake",
        width_px=512,
        height_px=512,
        mask={"rectangle": part, "feather_px": 0},
    )
    prepared = bundled.prepare(Conditions(request.prompt))
    after = rows(list(generate(plan(card, request, sent, tmp_path), prepared))).numpy()
    assert np.abs(after.astype(int) - before).sum(-1)[160:352, 160:352].mean() > 10
    assert measure_border(after) < 2 * measure_border(before)
    fine, own = (np.diff(each[176:336, 176:336].mean(-1)).std() for each in (after, before))
    assert 0.4 < fine / own < 2


def measure_border(image: Pixels) -> float:
    """Mean difference between the means of squares of 16 px at both sides of the part's border, of 255."""
    squares = image.mean(-1).reshape(32, 16, 32, 16).mean((1, 3))
    first, end = 160 // 16, 352 // 16
    down, across = np.abs(np.diff(squares, axis=0)), np.abs(np.diff(squares, axis=1))
    edges = (
        down[first - 1, first:end], down[end - 1, first:end], across[first:end, first - 1], across[first:end, end - 1],
    )  # fmt: skip
    return float(np.mean(edges))

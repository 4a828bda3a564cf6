"""A request's style on its plan."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from api_schemas.catalog import ModelCard
from api_schemas.generation import ResolvedRequest, SentPicture
from worker.engine.canvas import Rectangle
from worker.engine.plan import GenerationPlan
from worker.engine.start import LowBandPlan, Picture
from worker.planner import plan_generation
from worker.style import lay_style

CARD = ModelCard(
    name="m", family="f", native_size_px=64, alignment_px=16, latent_channels=4, vae_scale=8,
    default_steps=4, default_guidance_scale=1.0, attention=["off", "conductor"], style_image=True,
)  # fmt: skip


def plan(
    folder: Path, style: dict[str, object] | None, size: tuple[int, int] = (96, 24), strength: float = 0.5
) -> GenerationPlan:
    path, source = folder / "style_image.png", folder / "source_image.png"
    Image.linear_gradient("L").resize(size).convert("RGB").rotate(90).save(path)
    sent = SentPicture(sha256="", width_px=size[0], height_px=size[1])
    request = ResolvedRequest.model_validate(
        {"model": "m", "steps": 4, "guidance_scale": 1.0, "seed": 1, "source": {}, "strength": strength, "width_px": 128,
         "height_px": 128, "style": style, "pictures": {"source_image": sent, "style_image": sent}}
    )  # fmt: skip
    bare = plan_generation(request, CARD, 1 << 30, folder)
    return lay_style(bare, {"source_image": source, "style_image": path}, CARD.vae_scale)


def test_a_style_picture_is_seen_whole_at_about_the_area_of_a_tile(tmp_path: Path) -> None:
    (stage,) = plan(tmp_path, {}).stages
    assert stage.style is not None
    height, width = stage.style.canvas.size
    assert height % 2 == width % 2 == 0  # what the model is aligned to
    assert 0.5 < height * width / (64 // 8) ** 2 <= 1.5
    assert width / height == pytest.approx(96 / 24, rel=0.5)
    with Image.open(tmp_path / "style_image.png") as image:
        reduced = np.asarray(image.resize((width * 8, height * 8), Image.Resampling.LANCZOS), np.float32)
    whole = stage.style.paint(stage.style.canvas.scaled(8).whole)
    found = (whole.permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(found - reduced).mean() < 4
    part = Rectangle(4, 8, 8, 16)
    assert (stage.style.paint(part) == part.slice(whole)).all()


def test_it_is_attended_to_in_every_step_also_on_a_canvas_of_one_tile(tmp_path: Path) -> None:
    (stage,) = plan(tmp_path, {"strength": 0.7}).stages
    attended = [stage.denoise.attention_at(index, 4) for index in range(4)]
    assert all(each is not None and each.styled and each.strength == 0.7 for each in attended)


@pytest.mark.parametrize("style", [{}, {"prompt": "ink"}])
def test_in_its_later_half_no_border_of_tiles_is_bare(style: dict[str, object], tmp_path: Path) -> None:
    """Any two pixels beside each other are in one tile: 1024² in a picture's style had a line in its middle."""
    (stage,) = plan(tmp_path, style, strength=1.0).stages
    for index in range(stage.steps // 2, stage.steps):
        tiles = stage.denoise.tiles_at(index, stage.steps)
        inside = {edge for tile in tiles for edge in range(tile.left, tile.left + tile.width - 1)}
        assert inside == set(range(stage.canvas.width - 1))
        inside = {edge for tile in tiles for edge in range(tile.top, tile.top + tile.height - 1)}
        assert inside == set(range(stage.canvas.height - 1))


def test_a_style_that_counts_for_nothing_is_none(tmp_path: Path) -> None:
    none = plan(tmp_path, None)
    assert plan(tmp_path, {"strength": 0}) == none
    assert isinstance(none.stages[0].start, Picture)
    assert none.stages[0].start.low_band is None
    words = plan(tmp_path, {"prompt": "ink"})
    assert words.stages[0].style is None
    assert isinstance(words.stages[0].start, Picture)
    assert isinstance(words.stages[0].start.low_band, LowBandPlan)

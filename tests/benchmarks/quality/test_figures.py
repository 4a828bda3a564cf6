"""From pictures to figures: real pictures measured against themselves, and a run of the whole program."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from api_schemas.generation import ResolvedRequest
from benchmarks.quality.figures import measure_pictures
from benchmarks.quality.pictures import (
    Kind,
    Made,
    Notes,
    Source,
    Subject,
    ask,
    list_subjects,
    make_pictures,
    nest,
)
from benchmarks.quality.prompts import SCENES, TEXTURES, find_known
from benchmarks.quality.reality import Reality, keep_reality, load_reality, observe_reality
from training.features import Features
from worker.adapters.source import ModelSource
from worker.process.warmup import Ready, make_ready

REQUEST = ResolvedRequest(model="", steps=1, guidance_scale=1, seed=0)
NOTES = Notes(source=Source(request=REQUEST, weights=""), seconds=1.5, lines=[])


@pytest.fixture(scope="module")
def features() -> Features:
    return Features()


@pytest.fixture(scope="module")
def reality(data: Path, large: Path, features: Features) -> Reality:
    return observe_reality(data, large, [1024], features)


@pytest.fixture(scope="module")
def toy() -> Ready:
    return make_ready(ModelSource("toy"), "cpu")


def pretend(kind: Kind, prompts: list[str], folder: Path, numbers: list[int]) -> list[Made]:
    """Real pictures as if a model had made them."""
    return [
        Made(Subject(kind, prompt, 0, 1024), folder / f"{number}.png", NOTES)
        for prompt, number in zip(prompts, numbers, strict=True)
    ]


def test_real_pictures_are_as_real_as_themselves(
    data: Path, large: Path, reality: Reality, features: Features
) -> None:
    scenes = pretend("scene", list(SCENES)[:2], large, [0, 1])
    natives = [replace(each, subject=replace(each.subject, kind="native")) for each in scenes]
    textures = pretend("texture", list(TEXTURES), data, list(range(8)))
    figures = measure_pictures([*scenes, *natives, *textures], reality, features)
    ratios = {name: value for name, value in figures.items() if "ratio" in name or "band" in name}
    assert len(ratios) == 8
    assert list(ratios.values()) == pytest.approx([1] * 8, rel=1e-3)
    assert figures["nearest"] == pytest.approx(1, rel=1e-3)
    assert figures["agreement"] == 100
    assert figures["scene seconds"] == figures["texture seconds"] == 1.5


def test_only_held_out_photographs_of_scenes_are_compared_with(reality: Reality) -> None:
    assert len(reality.crops) == 4
    assert len(reality.landscapes) == 2


def test_real_figures_travel_in_a_file(reality: Reality, tmp_path: Path) -> None:
    keep_reality(reality, tmp_path / "real.pt")
    again = load_reality(tmp_path / "real.pt")
    assert torch.equal(again.crops, reality.crops)
    assert (again.bands, again.nearest, again.textures) == (reality.bands, reality.nearest, reality.textures)


def test_a_prompt_that_a_caption_says_too_is_found() -> None:
    captions = ["old lawn in the rain", "Wet grey stones at night"]
    assert find_known(["the rain on an old lawn", "grey stones", "dry grey stone"], captions) == [
        "the rain on an old lawn", "grey stones",
    ]  # fmt: skip


def test_fields_are_set_by_dotted_names(toy: Ready) -> None:
    settings: dict[str, object] = {
        "layout": "cascade",
        "advanced.overlap_px": 64,
        "advanced.tile_grid": "fixed",
    }
    assert nest(settings) == {"layout": "cascade", "advanced": {"overlap_px": 64, "tile_grid": "fixed"}}
    request = ask(toy.card, Subject("texture", "oak floor boards", 3, 1024), settings)
    assert (request.layout, request.advanced.overlap_px, request.seamless, request.seed) == (
        "cascade",
        64,
        "both",
        3,
    )


def test_pictures_are_made_once_and_again_for_another_request(toy: Ready, tmp_path: Path) -> None:
    subjects = list_subjects(["scene", "texture"], 1, 1, [1024], toy.card.native_size_px)

    def make(weights: str, **settings: object) -> dict[str, int]:
        made = make_pictures(toy, weights, subjects, settings, tmp_path)
        return {each.subject.kind: each.path.stat().st_mtime_ns for each in made}

    first = make("a")
    assert make("a") == first
    other = make("a", steps=2)
    assert other["native"] == first["native"]
    assert other["scene"] > first["scene"]
    assert make("b", steps=2)["native"] > first["native"]


def test_the_program_prints_a_table_and_writes_sheets(tmp_path: Path) -> None:
    options = ["--model", "toy", "--size", "512", "--prompts", "1", "--seeds", "1", "--set", "steps=2"]
    command = [sys.executable, "-m", "benchmarks.quality", "--out", str(tmp_path / "run"), *options]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| 512² | goal | run |" in shown
    assert "| textures: seam ratio, the join of the wrap (blurred) | 1.00 ± .03 | " in shown
    assert "--set steps=2" in shown
    assert (tmp_path / "run/scenes.jpg").is_file()
    assert (tmp_path / "run/textures.jpg").is_file()
    figures = json.loads((tmp_path / "run/figures.json").read_text())["figures"]["512"]
    assert figures["scene seconds"] > 0

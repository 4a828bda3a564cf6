"""A worker that refuses its model: whoever started it reads why, once, and nobody tries again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chorale.test_cli import run
from tests.local_stack import find_all
from tests.tiny_models import tiny_stable_diffusion

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def only_pickles(folder: Path) -> str:
    (folder / WEIGHTS).rename((folder / WEIGHTS).with_suffix(".bin"))
    return (
        f"model {folder} is refused: {folder}/unet holds only pickled weights (unet/diffusion_pytorch_model.bin),"
        " which would run code when loaded; only safetensors are"
    )


def unknown_family(folder: Path) -> str:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "KandinskyPipeline"}))
    return f"model {folder} is refused: {folder} holds a KandinskyPipeline; known families: StableDiffusionPipeline,"


def damaged_text(folder: Path) -> str:
    """transformers and diffusers then say much."""
    (folder / "unet" / "config.json").write_text("{oops")
    return f"model {folder} is refused: {folder} cannot be loaded as a StableDiffusionPipeline: "


@pytest.mark.parametrize("change", [only_pickles, unknown_family, damaged_text])
def test_chorale_up_says_why_a_model_is_refused(change: Callable[[Path], str], tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")
    says = change(tmp_path / "tiny")
    data = tmp_path / "data"
    done = run("up", "--data", str(data), "--port", "0", "--model", str(tmp_path / "tiny"), folder=tmp_path)
    assert done.returncode == 1
    assert f"chorale: worker-1 ended with code 2: {says}" in done.stderr
    assert done.stderr.count(says) == 1
    assert "Traceback" not in done.stderr
    assert (data / "logs" / "worker-1.log").read_text().count(says) == 1  # it was not started again
    assert find_all(str(data)) == []


def test_chorale_generate_says_why_a_model_is_refused(tmp_path: Path) -> None:
    """For want of memory, and for a setting out of its limits."""
    wanted = {"CHORALE_MODEL": "toy:weights_gib=900000", "CHORALE_DEVICES": "cpu"}
    done = run("generate", "moss", folder=tmp_path, **wanted)
    assert done.returncode == 1
    assert (
        "chorale: worker-1 ended with code 2: model toy:weights_gib=900000 is refused: devices:"
        in done.stderr
    )
    assert "needs about 900000.2 GiB" in done.stderr
    done = run("generate", "moss", folder=tmp_path, CHORALE_MODEL="toy", CHORALE_LEASE_S="1")
    assert done.returncode == 1
    assert "ended with code 2: CHORALE_LEASE_S='1': Input should be greater than or equal to 2" in done.stderr

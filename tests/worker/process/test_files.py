"""Checkpoints, final states and rows on disk."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane, Rectangle
from worker.engine.denoise import Checkpoint
from worker.engine.generate import FinalState, generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.stitch import Band, stitch
from worker.engine.vae.decode import decode
from worker.errors import DamagedFileError
from worker.process.files import ImageFile
from worker.state_files import (
    EngineSetup,
    read_checkpoint,
    read_final_state,
    read_setup,
    write_checkpoint,
    write_final_state,
)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "latent": torch.randn(4, 8, 8),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "scheduler.sigmas": torch.tensor([0.1, float("inf"), float("nan")], dtype=torch.float64),
    }
    kept = Checkpoint(7, tensors, {"order": 2, "lower": None, "ratio": 0.1, "name": "é"})
    write_checkpoint(tmp_path / "a.safetensors", kept, 12.5, EngineSetup("bfloat16", 3, 1 << 30))
    found, engine_s = read_checkpoint(tmp_path / "a.safetensors")
    assert (found.step, found.scalars, engine_s) == (7, kept.scalars, 12.5)
    assert read_setup(tmp_path / "a.safetensors") == EngineSetup("bfloat16", 3, 1 << 30)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].numpy().tobytes() == tensor.numpy().tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_final_state_decodes_to_the_same_bytes(tmp_path: Path) -> None:
    """Though its canvas had more to be measured than a part of it shows."""
    tiny_stable_diffusion(tmp_path / "tiny")
    prepared = load_model(str(tmp_path / "tiny"), "cpu").prepare(Conditions("brick wall"))
    denoise = DenoisePlan(Plane(24, 16, (False, True)), 16, 0, 4, moving=True, seed=9)
    plan = GenerationPlan(9, 4, (StagePlan(denoise, 2),), DecodePlan(tile_size=8, mode="exact"))
    rows: list[Tensor] = []
    for event in generate(plan, prepared):
        if isinstance(event, FinalState):
            write_final_state(tmp_path / "state.safetensors", event)
        if isinstance(event, Band):
            rows.append(event.rows)
    kept = read_final_state(tmp_path / "state.safetensors")
    assert kept.moments
    tiles = decode(
        kept.latent,
        prepared.decoder,
        plan.canvas,
        plan.decode,
        moments=kept.moments,
        part=Rectangle(9, 0, 2, 16),
    )
    scale = prepared.decoder.scale
    (again,) = (event for event in stitch(tiles, 16 * scale) if isinstance(event, Band))
    assert torch.equal(again.rows, torch.cat(rows)[8 * scale : 16 * scale])


@pytest.mark.parametrize("damage", [b"", b"\x00" * 200, b"not a checkpoint"])
def test_a_damaged_checkpoint_is_told_apart(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(damage)
    for read in (read_checkpoint, read_final_state):
        with pytest.raises(DamagedFileError):
            read(path)


def test_a_checkpoint_is_no_final_state_nor_the_other_way(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, Checkpoint(7, {"x": torch.ones(1)}, {}), 12.5)
    with pytest.raises(DamagedFileError, match="no final state: it has no 'latent'"):
        read_final_state(path)
    write_final_state(path, FinalState(torch.ones(1), ()))
    with pytest.raises(DamagedFileError, match="no checkpoint: it has no 'step'"):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError):
        read_checkpoint(tmp_path / "nowhere.safetensors")


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 70))
def test_bands_of_any_height_make_the_picture(height: int, width: int, band: int) -> None:
    import tempfile

    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.tif"
        with ImageFile(path, height, width) as image:
            for top in range(0, height, band):
                image.write(top, pixels[top : top + band])
        assert (tifffile.imread(path) == pixels).all()
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff


def test_a_second_attempt_starts_on_a_clean_file(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    with ImageFile(path, 40, 40) as image:
        image.write(0, np.full((40, 40, 3), 9, np.uint8))
    with ImageFile(path, 20, 30) as image:
        image.write(0, np.zeros((20, 30, 3), np.uint8))
    assert tifffile.imread(path).shape == (20, 30, 3)
    assert not tifffile.imread(path).any()

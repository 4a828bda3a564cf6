"""Checkpoints on disk."""

from pathlib import Path

import pytest
import torch

from worker.checkpoint_file import read_checkpoint, write_checkpoint
from worker.engine.denoise import Checkpoint
from worker.errors import CheckpointError


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "latent": torch.randn(4, 8, 8),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "scheduler.sigmas": torch.tensor([0.1, float("inf"), float("nan")], dtype=torch.float64),
    }
    kept = Checkpoint(7, tensors, {"order": 2, "lower": None, "ratio": 0.1, "name": "é"})
    write_checkpoint(tmp_path / "a.safetensors", kept, 12.5)
    found, engine_s = read_checkpoint(tmp_path / "a.safetensors")
    assert (found.step, found.scalars, engine_s) == (7, kept.scalars, 12.5)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].numpy().tobytes() == tensor.numpy().tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 200, b"not a checkpoint"])
def test_a_damaged_checkpoint_is_told_apart(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(damage)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "nowhere.safetensors")

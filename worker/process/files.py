"""Files in a job's work folder: checkpoints, the final state, and the finished rows."""

import json
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

import numpy as np
import tifffile
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from worker.checksums import NO_CHECKSUM, verify_checksum, write_checksum
from worker.engine.denoise import Checkpoint
from worker.engine.generate import FinalState
from worker.engine.plan import BitDepth
from worker.engine.scheduler import Scalars
from worker.errors import DamagedFileError
from worker.process.protocol import CheckpointWritten

_LARGEST_SHARE = 1 / 20  # of the time may go into checkpoints
# Of checkpoints and final states. To be raised when one of an earlier version would lead to another picture.
_VERSION = 1


def write_checkpoint(path: Path, checkpoint: Checkpoint, engine_s: float) -> None:
    """Write atomically: at `path` there is a whole checkpoint or none."""
    state: dict[str, object] = {"step": checkpoint.step, "scalars": checkpoint.scalars, "engine_s": engine_s}
    partial = path.with_suffix(".partial")
    _write(partial, checkpoint.tensors, state)
    os.replace(partial, path)


def read_checkpoint(path: Path) -> tuple[Checkpoint, float]:
    """Read a checkpoint and the seconds of engine time that went into it.

    Raises:
        DamagedFileError: the file is damaged, not ours, or of another version.
    """
    tensors, state = _read(path)
    try:
        return Checkpoint(cast(int, state["step"]), tensors, cast(Scalars, state["scalars"])), cast(
            float, state["engine_s"]
        )
    except KeyError as error:
        raise DamagedFileError(f"{path.name} is no checkpoint: it has no {error}") from error


def write_final_state(path: Path, state: FinalState) -> None:
    """A safetensors file: `latent`, and `moments.0` and so on in the decoder's order."""
    moments = {f"moments.{index}": each for index, each in enumerate(state.moments)}
    _write(path, {"latent": state.latent, **moments}, {})


def read_final_state(path: Path) -> FinalState:
    """Inverse of `write_final_state`.

    Raises:
        DamagedFileError: the file is damaged, not ours, or of another version.
    """
    tensors, _ = _read(path)
    try:
        return FinalState(
            tensors["latent"], tuple(tensors[f"moments.{index}"] for index in range(len(tensors) - 1))
        )
    except KeyError as error:
        raise DamagedFileError(f"{path.name} is no final state: it has no {error}") from error


def _write(path: Path, tensors: dict[str, Tensor], state: dict[str, object]) -> None:
    told = json.dumps(state | {"version": _VERSION})
    save_file(tensors, path, metadata={"chorale": told, **NO_CHECKSUM})
    write_checksum(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        verify_checksum(path)
        with cast(AbstractContextManager[_SafetensorsFile], safe_open(path, framework="pt")) as file:
            state: dict[str, object] = json.loads(file.metadata()["chorale"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path.name} cannot be read: {error}") from error
    if state.get("version") != _VERSION:
        raise DamagedFileError(f"{path.name} is of version {state.get('version')}; this one reads {_VERSION}")
    return tensors, state


class _SafetensorsFile(Protocol):
    """What `safe_open` opens; the package declares no types for it."""

    def metadata(self) -> dict[str, str]: ...

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...


class CheckpointWriter:
    """Writes checkpoints into a folder, at most so often that they do not slow the job down.

    Args:
        interval_s: least time between two checkpoints, seconds.
        step: of the checkpoint that the job continues from, or 0.
    """

    def __init__(self, folder: Path, interval_s: float, step: int = 0) -> None:
        self._folder = folder
        self._interval_s = self._wait_s = interval_s
        self._written_at = time.monotonic()
        self._step = step

    @property
    def step(self) -> int:
        """Steps that the newest checkpoint has."""
        return self._step

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._written_at >= self._wait_s

    def write(self, checkpoint: Checkpoint, engine_s: float) -> CheckpointWritten:
        """Write a checkpoint, due or not."""
        started_at, path = time.monotonic(), self._folder / f"checkpoint-{checkpoint.step:04d}.safetensors"
        write_checkpoint(path, checkpoint, engine_s)
        self._written_at, self._step = time.monotonic(), checkpoint.step
        self._wait_s = max(self._interval_s, (self._written_at - started_at) / _LARGEST_SHARE)
        return CheckpointWritten(checkpoint.step, path)


class ImageFile:
    """A BigTIFF, RGB, uint8 or uint16, that is filled from the top.

    tifffile makes the header. Rows are plain writes at their offset: the touched pages of a memory map
    would count as this process' memory.
    """

    def __init__(self, path: Path, height: int, width: int, bit_depth: BitDepth = 8) -> None:
        self._row_bytes = width * 3 * bit_depth // 8
        self._offset = _lay_out(path, height, width, bit_depth)
        self._file = os.open(path, os.O_WRONLY)

    def write(self, top: int, rows: np.ndarray) -> None:
        """Write rows (h, W, 3) from row `top` down."""
        view = memoryview(rows.tobytes())
        position = self._offset + top * self._row_bytes
        while view:
            written = os.pwrite(self._file, view, position)
            position, view = position + written, view[written:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _lay_out(path: Path, height: int, width: int, bit_depth: BitDepth) -> int:
    path.unlink(missing_ok=True)
    pixels = tifffile.memmap(
        path, shape=(height, width, 3), dtype=f"uint{bit_depth}", photometric="rgb", bigtiff=True
    )
    return int(pixels.offset)

"""What the engine process writes while a job runs: checkpoints now and then, and the finished rows."""

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import tifffile

from worker.engine.denoise import Checkpoint
from worker.engine.plan import BitDepth
from worker.process.protocol import CheckpointWritten
from worker.state_files import UNKNOWN_SETUP, EngineSetup, write_checkpoint

_LARGEST_SHARE = 1 / 20  # of the time may go into checkpoints


class CheckpointWriter:
    """Writes checkpoints into a folder, at most so often that they do not slow the job down.

    Args:
        interval_s: least time between two checkpoints, seconds.
        step: of the checkpoint that the job continues from, or 0.
        setup: of this engine.
    """

    def __init__(
        self, folder: Path, interval_s: float, step: int = 0, setup: EngineSetup = UNKNOWN_SETUP
    ) -> None:
        self._folder = folder
        self._setup = setup
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
        write_checkpoint(path, checkpoint, engine_s, self._setup)
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

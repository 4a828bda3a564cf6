"""Sends the preview of a picture while it is made, no faster than the consumer takes it."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor

from worker.engine.denoise import TilePredicted
from worker.engine.stitch import Band
from worker.process.previews import PreviewCanvas
from worker.process.protocol import CellsPreviewed

_INTERVAL_S = 0.05
_MAX_BYTES = 48_000  # fits the pipe's buffer, so that sending never waits for the consumer


class PreviewSender:
    """Paints what the engine yields, and sends changed cells, one message at a time.

    Messages wait until the consumer has published the one before.
    """

    def __init__(self, canvas: PreviewCanvas, pipe: Connection) -> None:
        self._canvas, self._pipe = canvas, pipe
        self._arriving = ArrivingTiles()
        self._sent_at = time.monotonic()
        self._is_waiting = False

    @property
    def is_waiting(self) -> bool:
        """Whether the consumer has not yet published what was sent last."""
        return self._is_waiting

    def confirm(self) -> None:
        """The consumer has published what was sent last."""
        self._is_waiting = False

    def resize(self, height: int, width: int) -> None:
        """Continue with a canvas of another size, latent pixels."""
        self._canvas.resize(height, width)

    def paint_tile(self, tile: TilePredicted) -> None:
        """Paint this tile once it is in main memory, and now those that are."""
        self._arriving.add(tile)
        self.paint_arrived()

    def paint_arrived(self, *, wait: bool = False) -> None:
        """Paint tiles that are in main memory; all tiles with `wait`."""
        for tile, clean in self._arriving.take(wait=wait):
            self._canvas.paint(tile.tile, clean, tile.index + 1)

    def paint_band(self, band: Band) -> None:
        rows = band.rows.numpy()
        levels = rows if rows.dtype == np.uint8 else (rows >> 8).astype(np.uint8)
        self._canvas.paint_rows(band.top, levels)

    def send_if_due(self) -> None:
        """Send changed cells, unless the last were sent a moment ago or are not published yet."""
        if not self._is_waiting and time.monotonic() - self._sent_at >= _INTERVAL_S:
            self.send()

    def send(self) -> bool:
        """Send changed cells; False if there are none."""
        cells = self._canvas.take(_MAX_BYTES)
        if cells:
            self._pipe.send(CellsPreviewed(cells))
            self._is_waiting, self._sent_at = True, time.monotonic()
        return bool(cells)


@dataclass(frozen=True, slots=True)
class _ArrivingTile:
    """A tile, its copy in main memory, and the event after which the copy is whole; None: at once."""

    tile: TilePredicted
    clean: Tensor
    copied: torch.cuda.Event | None


class ArrivingTiles:
    """Tiles on their way from a GPU to main memory.

    Reading a tile at once would drain the GPU's queue. So each copy is queued behind the tile's
    prediction and painted when it is found to be there, usually one batch later.
    """

    def __init__(self) -> None:
        self._tiles: deque[_ArrivingTile] = deque()

    def add(self, tile: TilePredicted) -> None:
        if not tile.clean.is_cuda:
            self._tiles.append(_ArrivingTile(tile, tile.clean, None))
            return
        clean = torch.empty(tile.clean.shape, dtype=tile.clean.dtype, pin_memory=True)
        clean.copy_(tile.clean, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._tiles.append(_ArrivingTile(tile, clean, copied))

    def take(self, *, wait: bool = False) -> Iterator[tuple[TilePredicted, Tensor]]:
        """Tiles that are there, in the order in which they were added, each with its clean estimate (C, h, w)."""
        while self._tiles:
            first = self._tiles[0]
            if first.copied is not None and wait:
                first.copied.synchronize()
            elif first.copied is not None and not first.copied.query():
                return
            self._tiles.popleft()
            yield first.tile, first.clean

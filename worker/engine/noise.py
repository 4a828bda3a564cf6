"""Initial noise as a function of seed and position."""

import hashlib

import torch
from torch import Tensor

from worker.engine.canvas import Rectangle

BLOCK = 64


def initial_noise(
    seed: int, channels: int, height: int, width: int, top: int = 0, left: int = 0, stage: int = 0
) -> Tensor:
    """Standard normal noise of a window of the endless plane that `seed` and `stage` name.

    Drawn in blocks of 64 x 64, each from its own generator, so a crop of a large canvas starts from
    the same noise as a small canvas at that place, whatever their sizes.

    Returns:
        (channels, height, width), float32.
    """
    noise = torch.empty(channels, height, width)
    name = f"{seed}.{stage}" if stage else str(seed)
    for row in range(top // BLOCK, (top + height - 1) // BLOCK + 1):
        for column in range(left // BLOCK, (left + width - 1) // BLOCK + 1):
            _place(noise, _block(name, channels, row, column), row * BLOCK - top, column * BLOCK - left)
    return noise


def _block(name: str, channels: int, row: int, column: int) -> Tensor:
    digest = hashlib.blake2b(f"{name}/{row}/{column}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(channels, BLOCK, BLOCK, generator=generator)


def _place(noise: Tensor, block: Tensor, top: int, left: int) -> None:
    _, height, width = noise.shape
    bottom, right = min(top + BLOCK, height), min(left + BLOCK, width)
    onto = Rectangle(max(top, 0), max(left, 0), bottom - max(top, 0), right - max(left, 0))
    source = Rectangle(onto.top - top, onto.left - left, onto.height, onto.width)
    onto.slice(noise).copy_(source.slice(block))

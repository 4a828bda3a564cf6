"""Telling a lack of memory from other errors."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has a class for devices only; for main memory there are words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_unused_memory() -> None:
    """Give back what PyTorch keeps for later, so that smaller pieces find room between larger ones."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

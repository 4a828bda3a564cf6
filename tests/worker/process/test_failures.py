"""What clients read when the engine fails."""

import errno
import os

import pytest
import torch

from worker.adapters.errors import DamagedModelError
from worker.engine.errors import GridError, NonFiniteLatentError
from worker.process.failures import describe


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (NonFiniteLatentError("step 3 of 8"), "non_finite_latent", False),
        (DamagedModelError("moss.safetensors has another digest"), "model_refused", False),
        (OSError(errno.ENOSPC, "No space"), "disk_full", True),
        (
            RuntimeError(f"Error while serializing: {os.strerror(errno.ENOSPC)} (os error 28)"),
            "disk_full",
            True,
        ),
        (MemoryError(), "out_of_memory", False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory", False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"), "out_of_memory", False),
        (GridError("overlap 9 must be less than tile_size 8"), "engine_failed", False),
        (ZeroDivisionError("division by zero"), "engine_failed", False),
    ],
)
def test_every_error_has_its_code(error: Exception, code: str, retryable: bool) -> None:
    failed = describe(error)
    assert (failed.code, failed.retryable) == (code, retryable)
    assert failed.message

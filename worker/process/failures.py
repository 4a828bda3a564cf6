"""Errors of the engine process as clients read them."""

import errno
import logging
import os

from worker.adapters.errors import ModelError
from worker.engine.errors import NonFiniteImageError, NonFiniteLatentError
from worker.engine.memory import is_out_of_memory
from worker.errors import JobFailedError
from worker.process.protocol import Failed

_log = logging.getLogger(__name__)
_FULL = {errno.ENOSPC, errno.EDQUOT}


def describe(error: Exception) -> Failed:
    """Give the error a code and a message, and say whether another attempt may succeed."""
    match error:
        case NonFiniteLatentError() | NonFiniteImageError():
            return Failed("non_finite_latent", str(error), retryable=False)
        case JobFailedError():  # another rank has described its error already
            return Failed(error.code, str(error), retryable=error.retryable)
        case ModelError():  # an add-on that does not fit or was changed, or a condition that the model does not know
            return Failed("model_refused", str(error)[:500], retryable=False)
        case _ if _is_disk_full(error):
            return Failed("disk_full", "no space left in the work folder", retryable=True)
        case _ if is_out_of_memory(error):
            return Failed(
                "out_of_memory", (str(error) or "no memory left").splitlines()[0][:300], retryable=False
            )
        case _:
            _log.error("the engine failed", exc_info=error)
            return Failed("engine_failed", f"{type(error).__name__}: {error}"[:500], retryable=False)


def _is_disk_full(error: Exception) -> bool:
    """safetensors passes on the system's message only."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return os.strerror(errno.ENOSPC) in str(error)

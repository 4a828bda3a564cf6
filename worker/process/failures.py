"""Errors of the engine process in the words that clients read."""

import errno
import logging
import os

from worker.adapters.errors import ModelError
from worker.engine.errors import NonFiniteImageError, NonFiniteLatentError
from worker.engine.memory import is_out_of_memory
from worker.errors import HopelessJobError
from worker.process.protocol import Broke

_log = logging.getLogger(__name__)
_FULL = {errno.ENOSPC, errno.EDQUOT}


def describe(error: Exception) -> Broke:
    """Name the error's code; whether another attempt may end better."""
    match error:
        case NonFiniteLatentError() | NonFiniteImageError():
            return Broke("non_finite_latent", str(error), retryable=False)
        case HopelessJobError():  # another rank has described its error already
            return Broke(error.code, str(error), retryable=error.retryable)
        case ModelError():  # an add-on that does not fit or was changed, a condition that is not understood
            return Broke("model_refused", str(error)[:500], retryable=False)
        case _ if _is_disk_full(error):
            return Broke("disk_full", "no space left in the work folder", retryable=True)
        case _ if is_out_of_memory(error):
            return Broke(
                "out_of_memory", (str(error) or "no memory left").splitlines()[0][:300], retryable=False
            )
        case _:
            _log.error("the engine failed", exc_info=error)
            return Broke("engine_failed", f"{type(error).__name__}: {error}"[:500], retryable=False)


def _is_disk_full(error: Exception) -> bool:
    """safetensors gives the system's words only."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return os.strerror(errno.ENOSPC) in str(error)

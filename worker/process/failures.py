"""Errors of the engine process as clients read them."""

import logging
from dataclasses import replace

from worker.adapters.errors import ModelError
from worker.disk_faults import WORK_FOLDER, find_disk_fault, hide_paths
from worker.engine.errors import NonFiniteImageError, NonFiniteLatentError
from worker.engine.memory import is_out_of_memory
from worker.errors import JobFailedError
from worker.process.protocol import Failed

_log = logging.getLogger(__name__)


def describe(error: Exception) -> Failed:
    """Give the error a code and a message without paths, and say whether another attempt may succeed."""
    failed = _describe(error)
    return replace(failed, message=hide_paths(failed.message)[:500])


def _describe(error: Exception) -> Failed:
    match error:
        case NonFiniteLatentError() | NonFiniteImageError():
            return Failed("non_finite_latent", str(error), retryable=False)
        case JobFailedError():  # another rank has described its error already
            return Failed(error.code, str(error), retryable=error.retryable)
        case ModelError():  # an add-on that does not fit or was changed, or a condition that the model does not know
            return Failed("model_refused", str(error), retryable=False)
        case _ if (fault := find_disk_fault(error, WORK_FOLDER)) is not None:
            _log.error("the work folder failed", exc_info=error)
            return Failed(fault.code, str(fault), retryable=True)
        case _ if is_out_of_memory(error):
            return Failed(
                "out_of_memory", (str(error) or "no memory left").splitlines()[0][:300], retryable=False
            )
        case _:
            _log.error("the engine failed", exc_info=error)
            return Failed("engine_failed", f"{type(error).__name__}: {error}", retryable=False)

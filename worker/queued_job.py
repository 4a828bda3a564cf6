"""A job as RQ stores it, when it comes out of the queue."""

import logging
from collections.abc import Sequence
from typing import Any, cast

from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError
from rq.job import Job

from api_schemas.wire import RUN_JOB
from worker.patience import is_wrong_type

_log = logging.getLogger(__name__)


class QueuedJob(Job):
    """One that cannot be read counts as none, which RQ passes over everywhere, and is deleted.

    Nothing is lost: our own record has the job, and the service enqueues it again.
    """

    def refresh(self) -> None:
        try:
            super().refresh()
        except RedisError as error:
            if not is_wrong_type(error):
                raise
            raise self._refuse(error) from error

    def restore(self, raw_data: dict[bytes, bytes]) -> Any:
        try:
            restored = super().restore(raw_data)  # pyright: ignore[reportUnknownMemberType]
            arguments = cast(Sequence[object], self.args or ())  # pyright: ignore[reportUnknownMemberType]
            call = (self.func_name, list(arguments))
        except NoSuchJobError:
            raise
        except Exception as error:  # RQ raises whatever its parts do
            raise self._refuse(error) from error
        if call != (RUN_JOB, [self.id]):
            raise self._refuse(f"it calls {call[0]!a:.100} with {call[1]!a:.100}")
        return restored

    def _refuse(self, why: object) -> NoSuchJobError:
        self.connection.delete(self.key)
        _log.warning("what the queue has of job %s cannot be read: %s", ascii(self.id)[:100], why)
        return NoSuchJobError(f"job {self.id} cannot be read")

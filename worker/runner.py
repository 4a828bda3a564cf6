"""run_job: the only place where Redis, storage and engine meet."""

import logging
import tempfile
import time
import uuid
from pathlib import Path

from redis.exceptions import RedisError
from rq import Retry

from api_schemas.errors import JobError
from api_schemas.events import (
    CanceledData,
    DelayedData,
    FailedData,
    PreemptedData,
    Result,
    ResumedData,
    StageStartedData,
    StartedData,
    SucceededData,
)
from api_schemas.generation import PicturePart, ResolvedRequest
from api_schemas.job import TERMINAL
from api_schemas.wire import input_key
from worker.attempt import Attempt
from worker.checkpoints import CheckpointStore
from worker.context import WORKPLACE, Workplace
from worker.errors import (
    CanceledError,
    EngineLostError,
    EngineStalledError,
    FencedError,
    HopelessJobError,
    PreemptedError,
    ResourceError,
)
from worker.events import DurableData, EventLog, count_fruitless_attempts
from worker.process.protocol import Generate, Generated
from worker.result import FILES, Delivery, Parcel, sweep
from worker.storage import Storage
from worker.watch import Watch

LET_GO = "let go"  # somebody else owns the job: nothing about it may be touched
_PREEMPTIONS = 10_000  # they are no failures
_QUIET_S = 8.0  # well within the lease
_MAX_PAUSE_S = 30.0

_log = logging.getLogger(__name__)


def run_job(job_id: str) -> Retry | str:
    """Carry one job to its end, or as far as this worker may.

    Returns:
        the job's last status, `LET_GO`, or Retry when another worker has to go on.
    """
    workplace = WORKPLACE.get()
    try:
        log = EventLog(workplace.redis, job_id)
    except FencedError:
        return LET_GO
    if log.job.status in TERMINAL:
        return log.job.status
    with (
        tempfile.TemporaryDirectory(dir=workplace.work_dir, ignore_cleanup_errors=True) as folder,
        CheckpointStore(workplace.storage, job_id) as checkpoints,
    ):
        return _Run(workplace, log, checkpoints, Path(folder)).finish()


class _Run:
    """One job in the hands of this worker, over as many attempts as it takes."""

    def __init__(
        self, workplace: Workplace, log: EventLog, checkpoints: CheckpointStore, folder: Path
    ) -> None:
        self._workplace = workplace
        self._log = log
        self._checkpoints = checkpoints
        self._folder = folder
        self._watch = Watch(workplace, log)
        self._step = 0
        self._pauses = 0
        self._waited_s = 0.0

    def finish(self) -> Retry | str:
        try:
            return self._run_until_done()
        except PreemptedError as error:
            return self._hand_back(error)
        except FencedError as error:
            _log.warning("%s", error)
            self._workplace.engine.quiet(_QUIET_S)
            return LET_GO
        except CanceledError as error:
            return self._end(CanceledData(reason=str(error)), "canceled")
        except RedisError:
            self._workplace.engine.quiet(_QUIET_S)
            raise  # nobody can be told; the lease runs out and the job goes on from its checkpoint
        except Exception as error:
            _log.exception("job %s failed", self._log.job_id)
            return self._end(FailedData(error=_describe(error)), "failed")

    def _run_until_done(self) -> str:
        while True:
            try:
                job = self._claim()
                attempt = Attempt(self._workplace, self._log, self._checkpoints, self._watch)
                return self._deliver(attempt.run(job))
            except (EngineLostError, EngineStalledError) as error:
                _log.warning("job %s: %s", self._log.job_id, error)
                self._workplace.engine.restart()
            except ResourceError as error:
                self._bide(error)

    def _claim(self) -> Generate:
        """Begin an attempt, from the most advanced checkpoint."""
        workplace, request = self._workplace, self._log.job.request
        if request.model != workplace.card.name:
            message = f"this worker serves {workplace.card.name}, not {request.model}"
            raise HopelessJobError("no_model", message, retryable=True)
        token = uuid.uuid4().hex
        inputs = self._watch.run(self._fetch_inputs, _nothing)
        if self._log.job.attempt == 0:
            self._log.claim(StartedData(worker=workplace.worker, execution=token))
            return Generate(request, self._folder, None, inputs)
        self._refuse_poison()
        found = self._watch.run(lambda: self._checkpoints.find_newest(self._folder), _nothing)
        self._step, path = found or (0, None)
        self._log.claim(ResumedData(worker=workplace.worker, execution=token, step=self._step))
        return Generate(request, self._folder, path, inputs)

    def _fetch_inputs(self) -> dict[PicturePart, Path]:
        log = self._log
        return fetch_inputs(self._workplace.storage, log.job_id, log.job.request, self._folder)

    def _refuse_poison(self) -> None:
        fruitless = count_fruitless_attempts(self._log.read_events())
        if fruitless >= self._workplace.patience.max_attempts:
            message = f"{fruitless} attempts ended without any progress"
            raise HopelessJobError("too_many_attempts", message, retryable=False)

    def _deliver(self, generated: Generated) -> str:
        began = time.monotonic()
        self._log.append(StageStartedData(stage="store", total=FILES))
        request = self._log.job.request
        delivery = Delivery(self._workplace.storage, request, self._log.job_id, self._log.token)
        parcel = self._watch.run(lambda: delivery.pack(generated, self._folder), delivery.stop)
        result = self._send(delivery, parcel, generated.engine_s)
        self._log.append(SucceededData(result=result))
        megapixels = result.width_px * result.height_px / 1e6
        self._workplace.pace.learn_store((time.monotonic() - began) / megapixels)
        return self._tidy("succeeded", result)

    def _send(self, delivery: Delivery, parcel: Parcel, engine_s: float) -> Result:
        while True:
            try:
                return self._watch.run(lambda: delivery.send(parcel, engine_s), delivery.stop)
            except ResourceError as error:
                self._bide(error)

    def _bide(self, error: ResourceError) -> None:
        """Wait for what is missing, longer each time.

        Raises:
            ResourceError: patience has run out.
        """
        pause_s = min(2.0**self._pauses, _MAX_PAUSE_S)
        if self._waited_s + pause_s > self._workplace.patience.storage_s:
            raise error
        self._log.append(DelayedData(reason=f"{error.code}: {error}", retry_in_s=pause_s))
        self._watch.sleep(pause_s, self._step)
        self._pauses += 1
        self._waited_s += pause_s

    def _hand_back(self, error: PreemptedError) -> Retry | str:
        try:
            self._log.append(PreemptedData(step=error.step, reason=str(error)))
        except FencedError:
            return LET_GO
        return Retry(max=_PREEMPTIONS, enqueue_at_front=True)

    def _end(self, data: DurableData, status: str) -> str:
        """Write the last event, unless somebody else did."""
        self._workplace.engine.quiet(_QUIET_S)
        try:
            self._log.append(data)
        except FencedError:
            return LET_GO
        return self._tidy(status)

    def _tidy(self, status: str, result: Result | None = None) -> str:
        """Delete what the result does not need; what cannot be deleted is garbage that nothing names."""
        try:
            self._checkpoints.delete_all()
            sweep(self._workplace.storage, self._log.job_id, result)
        except ResourceError:
            _log.warning("files of job %s stay behind", self._log.job_id)
        return status


def _describe(error: Exception) -> JobError:
    match error:
        case HopelessJobError() as hopeless:
            return JobError(code=hopeless.code, message=str(hopeless), retryable=hopeless.retryable)
        case ResourceError() as missing:
            return JobError(code=missing.code, message=str(missing), retryable=True)
        case _:
            # What an unforeseen error says may not be for clients.
            return JobError(
                code="internal_error", message="the worker failed; its log says why", retryable=True
            )


def _nothing() -> None:
    return


def fetch_inputs(
    storage: Storage, job_id: str, request: ResolvedRequest, folder: Path
) -> dict[PicturePart, Path]:
    """The job's pictures as PNG files in `folder`; those that are there already stay.

    Raises:
        HopelessJobError: one is no longer stored.
        ResourceError: the store does not answer.
    """
    paths: dict[PicturePart, Path] = {}
    for part in request.pictures:
        path = paths[part] = folder / f"{part}.png"
        partial = path.with_suffix(".partial")
        if path.exists():
            continue
        if not storage.get_file(input_key(job_id, part), partial):
            message = f"the picture {part} that came with this job is no longer stored"
            raise HopelessJobError("input_missing", message, retryable=False)
        partial.rename(path)
    return paths

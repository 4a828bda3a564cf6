"""run_job: claims a job, makes attempts until it ends, and stores its result."""

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
    PhaseStartedData,
    PreemptedData,
    Result,
    ResumedData,
    StartedData,
    SucceededData,
)
from api_schemas.generation import PicturePart, ResolvedRequest
from api_schemas.job import TERMINAL
from api_schemas.wire import input_key
from worker.attempt import Attempt
from worker.checkpoints import CheckpointStore
from worker.context import JOB_CONTEXT, JobContext
from worker.errors import (
    CanceledError,
    EngineLostError,
    EngineStalledError,
    FencedError,
    JobFailedError,
    PreemptedError,
    ResourceError,
)
from worker.events import DurableData, EventLog, count_fruitless_attempts
from worker.process.protocol import Generate, Generated
from worker.result import FILES, ResultFiles, ResultWriter, delete_leftovers
from worker.storage import Storage
from worker.watch import Watch

RELEASED = "released"  # another worker owns the job: nothing of it may be changed
_MAX_PREEMPTIONS = 10_000  # they are no failures
_STOP_TIMEOUT_S = 8.0  # well within the lease
_MAX_PAUSE_S = 30.0

_log = logging.getLogger(__name__)


def run_job(job_id: str) -> Retry | str:
    """Run one job until it has ended, or as long as this worker may.

    Returns:
        the job's last status, `RELEASED`, or Retry when another worker is to continue.
    """
    context = JOB_CONTEXT.get()
    try:
        log = EventLog(context.redis, job_id)
    except FencedError:
        return RELEASED
    if log.job.status in TERMINAL:
        return log.job.status
    with (
        tempfile.TemporaryDirectory(dir=context.work_dir, ignore_cleanup_errors=True) as folder,
        CheckpointStore(context.storage, job_id) as checkpoints,
    ):
        return _Run(context, log, checkpoints, Path(folder)).finish()


class _Run:
    """One job on this worker, over as many attempts as it takes."""

    def __init__(
        self, context: JobContext, log: EventLog, checkpoints: CheckpointStore, folder: Path
    ) -> None:
        self._context = context
        self._log = log
        self._checkpoints = checkpoints
        self._folder = folder
        self._watch = Watch(context, log)
        self._backoff = _Backoff(context.limits.storage_timeout_s)
        self._step = 0

    def finish(self) -> Retry | str:
        try:
            return self._run_until_done()
        except PreemptedError as error:
            return self._requeue(error)
        except FencedError as error:
            _log.warning("%s", error)
            self._context.engine.stop_job(_STOP_TIMEOUT_S)
            return RELEASED
        except CanceledError as error:
            return self._end(CanceledData(reason=str(error)), "canceled")
        except RedisError:
            self._context.engine.stop_job(_STOP_TIMEOUT_S)
            raise  # no event can be written; the lease runs out and the job continues from its checkpoint
        except Exception as error:
            _log.exception("job %s failed", self._log.job_id)
            return self._end(FailedData(error=_describe(error)), "failed")

    def _run_until_done(self) -> str:
        while True:
            try:
                job = self._claim()
                attempt = Attempt(self._context, self._log, self._checkpoints, self._watch)
                return self._store_result(attempt.run(job))
            except (EngineLostError, EngineStalledError) as error:
                _log.warning("job %s: %s", self._log.job_id, error)
                self._context.engine.restart()
            except ResourceError as error:
                self._wait_for_resource(error)

    def _claim(self) -> Generate:
        """Begin an attempt, from the checkpoint with the most steps."""
        context, request = self._context, self._log.job.request
        if request.model != context.card.name:
            message = f"this worker serves {context.card.name}, not {request.model}"
            raise JobFailedError("no_model", message, retryable=True)
        token = uuid.uuid4().hex
        inputs = self._watch.run(self._fetch_inputs, _nothing)
        if self._log.job.attempt == 0:
            self._log.claim(StartedData(worker=context.worker, execution=token))
            return Generate(request, self._folder, None, inputs)
        self._require_progress()
        found = self._watch.run(lambda: self._checkpoints.find_newest(self._folder), _nothing)
        self._step, path = found or (0, None)
        self._watch.step = self._step
        self._log.claim(ResumedData(worker=context.worker, execution=token, step=self._step))
        return Generate(request, self._folder, path, inputs)

    def _fetch_inputs(self) -> dict[PicturePart, Path]:
        log = self._log
        return fetch_inputs(self._context.storage, log.job_id, log.job.request, self._folder)

    def _require_progress(self) -> None:
        """
        Raises:
            HopelessJobError: the job fails again and again at the same place.
        """
        fruitless = count_fruitless_attempts(self._log.read_events())
        if fruitless >= self._context.limits.max_attempts:
            message = f"{fruitless} attempts ended without any progress"
            raise JobFailedError("too_many_attempts", message, retryable=False)

    def _store_result(self, generated: Generated) -> str:
        started_at = time.monotonic()
        self._log.append(PhaseStartedData(phase="store", total=FILES))
        request = self._log.job.request
        writer = ResultWriter(self._context.storage, request, self._log.job_id, self._log.token, generated)
        files = self._watch.run(lambda: writer.write(self._folder), writer.stop)
        result = self._upload(writer, files)
        self._log.append(SucceededData(result=result))
        megapixels = result.width_px * result.height_px / 1e6
        self._context.pace.learn_store((time.monotonic() - started_at) / megapixels)
        return self._clean_up("succeeded", result)

    def _upload(self, writer: ResultWriter, files: ResultFiles) -> Result:
        while True:
            try:
                return self._watch.run(lambda: writer.upload(files), writer.stop)
            except ResourceError as error:
                self._wait_for_resource(error)

    def _wait_for_resource(self, error: ResourceError) -> None:
        """
        Raises:
            ResourceError: the job has waited long enough.
        """
        pause_s = self._backoff.take_pause()
        if pause_s is None:
            raise error
        self._log.append(DelayedData(reason=f"{error.code}: {error}", retry_in_s=pause_s))
        self._watch.sleep(pause_s, self._step)

    def _requeue(self, error: PreemptedError) -> Retry | str:
        _log.warning("job %s goes back to the queue with %d steps: %s", self._log.job_id, error.step, error)
        try:
            self._log.append(PreemptedData(step=error.step, reason=str(error)))
        except FencedError:
            return RELEASED
        return Retry(max=_MAX_PREEMPTIONS, enqueue_at_front=True)

    def _end(self, data: DurableData, status: str) -> str:
        """Write the last event, unless another worker did."""
        self._context.engine.stop_job(_STOP_TIMEOUT_S)
        try:
            self._log.append(data)
        except FencedError:
            return RELEASED
        return self._clean_up(status)

    def _clean_up(self, status: str, result: Result | None = None) -> str:
        """Delete what the result does not need; what cannot be deleted stays, and nothing refers to it."""
        try:
            self._checkpoints.delete_all()
            delete_leftovers(self._context.storage, self._log.job_id, result)
        except ResourceError:
            _log.warning("files of job %s could not be deleted", self._log.job_id)
        return status


class _Backoff:
    """Pauses of 1 s to 30 s, each twice the last, up to a total in seconds."""

    def __init__(self, total_s: float) -> None:
        self._left_s = total_s
        self._next_s = 1.0

    def take_pause(self) -> float | None:
        """None if the next pause would be too much."""
        pause_s = self._next_s
        if pause_s > self._left_s:
            return None
        self._left_s -= pause_s
        self._next_s = min(2 * pause_s, _MAX_PAUSE_S)
        return pause_s


def _describe(error: Exception) -> JobError:
    match error:
        case JobFailedError() as hopeless:
            return JobError(code=hopeless.code, message=str(hopeless), retryable=hopeless.retryable)
        case ResourceError() as missing:
            return JobError(code=missing.code, message=str(missing), retryable=True)
        case _:
            # The message of an unforeseen error may hold what clients must not read.
            return JobError(
                code="internal_error", message="the worker failed; its log says why", retryable=True
            )


def _nothing() -> None:
    return


def fetch_inputs(
    storage: Storage, job_id: str, request: ResolvedRequest, folder: Path
) -> dict[PicturePart, Path]:
    """Fetch the job's pictures as PNG files into `folder`, unless they are there already.

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
            raise JobFailedError("input_missing", message, retryable=False)
        partial.rename(path)
    return paths

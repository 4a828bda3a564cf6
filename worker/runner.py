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
    ExpiredData,
    FailedData,
    PhaseStartedData,
    PreemptedData,
    Result,
    ResumedData,
    StartedData,
    SucceededData,
    WarnedData,
)
from api_schemas.generation import PicturePart
from api_schemas.job import TERMINAL, explain_expiry
from api_schemas.stored import UnreadableRecordError
from api_schemas.wire import result_folder
from worker.attempt import Attempt
from worker.checkpoints import Beginning, CheckpointStore
from worker.context import JOB_CONTEXT, JobContext
from worker.disk_faults import WORK_FOLDER, blame_work_folder, find_disk_fault
from worker.errors import (
    CanceledError,
    EngineLostError,
    EngineStalledError,
    ExpiredError,
    FencedError,
    JobFailedError,
    PreemptedError,
    ResourceError,
)
from worker.events import DurableData, EventLog, count_fruitless_attempts
from worker.inputs import fetch_inputs, fetch_state
from worker.process.protocol import Generate, Generated
from worker.resource_wait import ResourceWait
from worker.result import FILES, ResultFiles, ResultWriter, delete_leftovers
from worker.watch import Watch

RELEASED = "released"  # another worker owns the job: nothing of it may be changed
UNREADABLE = (
    "unreadable"  # the queue forgets the job; if another version reads it, the service enqueues it again
)
_GIVE_BACK = Retry(max=10_000, enqueue_at_front=True)  # so often, for it is no failure
_STOP_TIMEOUT_S = 8.0  # well within the lease

_log = logging.getLogger(__name__)


def run_job(job_id: str) -> Retry | str:
    """Run one job until it has ended, or as long as this worker may.

    Returns:
        the job's last status, `RELEASED`, `UNREADABLE`, or Retry when another worker is to continue.
    """
    context = JOB_CONTEXT.get()
    try:
        log = EventLog(context.redis, job_id)
    except FencedError:
        return RELEASED
    except UnreadableRecordError as error:
        _log.error("job %s is skipped, its record cannot be read: %s", job_id, error)
        return UNREADABLE
    if log.job.status in TERMINAL:
        return log.job.status
    try:
        folder = tempfile.TemporaryDirectory(dir=context.work_dir, ignore_cleanup_errors=True)
    except OSError as error:  # before the job has begun, so nothing is said in its log
        context.machine.pause(blame_work_folder(error))
        return _GIVE_BACK
    with folder as path, CheckpointStore(context.storage, job_id) as checkpoints:
        return _Run(context, log, checkpoints, Path(path)).finish()


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
        self._wait = ResourceWait(context, log, self._watch, folder)
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
        except ExpiredError:
            return self._end(ExpiredData(error=explain_expiry(self._log.job)), "expired")
        except RedisError:
            self._context.engine.stop_job(_STOP_TIMEOUT_S)
            raise  # no event can be written; the lease runs out and the job continues from its checkpoint
        except JobFailedError as error:
            _log.error("job %s failed: %s (%s)", self._log.job_id, error, error.code)
            return self._end(FailedData(error=_describe(error)), "failed")
        except Exception as error:
            _log.exception("job %s failed", self._log.job_id)
            return self._end(FailedData(error=_describe(error)), "failed")

    def _run_until_done(self) -> str:
        self._watch.tick()  # its deadline may have passed in the queue
        self._wait.require_space()
        while True:
            try:
                job = self._claim()
                attempt = Attempt(self._context, self._log, self._checkpoints, self._watch)
                return self._store_result(attempt.run(job), job.inputs.get("source_image"))
            except (EngineLostError, EngineStalledError) as error:
                _log.warning("job %s: %s", self._log.job_id, error)
                self._context.engine.restart()
                self._wait.check_after_loss(self._step)
            except ResourceError as error:
                self._wait.wait(error, self._step)
            except OSError as error:
                fault = find_disk_fault(error, WORK_FOLDER)
                if fault is None:
                    raise
                self._wait.wait(fault, self._step)

    def _claim(self) -> Generate:
        """Begin an attempt, from the checkpoint with the most steps."""
        context, request = self._context, self._log.job.request
        if request.model != context.card.name:
            message = f"this worker serves {context.card.name}, not {request.model}"
            raise JobFailedError("no_model", message, retryable=True)
        token = uuid.uuid4().hex
        inputs = self._watch.run(self._fetch_inputs, _nothing)
        state = self._watch.run(self._fetch_state, _nothing)
        if self._log.job.attempt == 0:
            self._log.claim(StartedData(worker=context.worker, execution=token))
            return Generate(request, self._folder, None, inputs, state)
        self._require_progress()
        found = self._watch.run(lambda: self._checkpoints.find_newest(self._folder), _nothing)
        self._step = self._watch.step = found.step
        self._log.claim(ResumedData(worker=context.worker, execution=token, step=self._step))
        if found.damaged:
            self._log.append(_warn_of_damage(found))
        return Generate(request, self._folder, found.path, inputs, state)

    def _fetch_inputs(self) -> dict[PicturePart, Path]:
        log = self._log
        return fetch_inputs(self._context.storage, log.job_id, log.job.request, self._folder)

    def _fetch_state(self) -> Path | None:
        return fetch_state(self._context.storage, self._log.job.request, self._folder)

    def _require_progress(self) -> None:
        """
        Raises:
            HopelessJobError: the job fails again and again at the same place.
        """
        fruitless = count_fruitless_attempts(self._log.read_events())
        if fruitless >= self._context.limits.max_attempts:
            message = f"{fruitless} attempts ended without any progress"
            raise JobFailedError("too_many_attempts", message, retryable=False)

    def _store_result(self, generated: Generated, source: Path | None) -> str:
        started_at = time.monotonic()
        self._log.append(PhaseStartedData(phase="store", total=FILES))
        request = self._log.job.request
        prefix = f"{result_folder(self._log.job_id)}/{self._log.token}"
        writer = ResultWriter(
            self._context.storage, request, prefix, generated, source, self._context.marking
        )
        files = self._watch.run(lambda: writer.write(self._folder), writer.stop)
        for warning in files.warnings:
            self._log.append(warning)
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
                self._wait.wait(error, self._step)

    def _requeue(self, error: PreemptedError) -> Retry | str:
        _log.warning("job %s goes back to the queue with %d steps: %s", self._log.job_id, error.step, error)
        try:
            if self._log.token:  # else it was never begun here, and it may be another worker's
                self._log.append(PreemptedData(step=error.step, reason=str(error)))
        except FencedError:
            return RELEASED
        return _GIVE_BACK

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


def _warn_of_damage(found: Beginning) -> WarnedData:
    steps = ", ".join(map(str, dict.fromkeys(found.damaged)))
    goes_on = f"going on after step {found.step}" if found.path else "starting over"
    return WarnedData(
        code="checkpoint_damaged", message=f"damaged checkpoints are not used (after step {steps}): {goes_on}"
    )


def _nothing() -> None:
    return

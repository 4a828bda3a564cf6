"""What can go wrong in the worker.

WorkerError
├── DeviceRefusedError       a device does not exist or has too little memory
├── ModelRefusedError        the engine process says why it cannot serve its model
├── EngineLostError          the engine process died
├── EngineStalledError       the engine process makes no progress
├── JobFailedError           the job ends here, with the code that clients read
├── DamagedFileError         a stored file is not what was written
├── ResourceError            something outside is missing; waiting may help
│   ├── StorageUnavailableError
│   ├── SigningUnavailableError
│   ├── DiskFullError
│   └── DiskUnwritableError
├── FencedError              a newer attempt owns the job, or it has ended
├── CanceledError            a client or an operator has canceled the job
├── ExpiredError             the job has missed its deadline
└── PreemptedError           the worker shuts down; another has to continue the job
"""

from api_schemas.errors import ErrorCode


class WorkerError(Exception):
    """Root of the worker's errors."""


class DeviceRefusedError(WorkerError):
    """A device does not exist or has too little memory."""


class ModelRefusedError(WorkerError):
    """The engine process says why it cannot serve its model."""


class EngineLostError(WorkerError):
    """The engine process died."""


class EngineStalledError(WorkerError):
    """The engine process makes no progress."""


class JobFailedError(WorkerError):
    """The job ends here, with the code that clients read.

    Args:
        retryable: whether a new job that asks for the same may succeed.
    """

    def __init__(self, code: ErrorCode, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.retryable = retryable


class DamagedFileError(WorkerError):
    """A stored file is not what was written."""


class ResourceError(WorkerError):
    """Something outside is missing; waiting may help."""

    code: ErrorCode = "service_unavailable"


class StorageUnavailableError(ResourceError):
    """The object store does not answer or refuses."""

    code: ErrorCode = "storage_unavailable"


class SigningUnavailableError(ResourceError):
    """The certificate that pictures are to be signed with is not valid now."""

    code: ErrorCode = "signing_unavailable"


class DiskFullError(ResourceError):
    """No space left."""

    code: ErrorCode = "disk_full"


class DiskUnwritableError(ResourceError):
    """The work folder is read-only, is not ours, or breaks."""

    code: ErrorCode = "disk_unwritable"


class FencedError(WorkerError):
    """A newer attempt owns the job, or it has ended."""


class CanceledError(WorkerError):
    """A client or an operator has canceled the job."""


class ExpiredError(WorkerError):
    """The job has not started, or not ended, by the time that was asked for."""


class PreemptedError(WorkerError):
    """The worker shuts down; another has to continue the job."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step

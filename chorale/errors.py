"""What can go wrong for a client or on a machine that runs the stack.

ChoraleError
├── ProblemError             the server refused; carries its problem body
│   ├── UnauthenticatedError an API key is needed, or this one is not accepted
│   ├── ForbiddenError       the key lacks a scope, or the host or origin is refused
│   ├── NotFoundError
│   ├── ConflictError        a state that does not allow this, or not yet
│   ├── InvalidRequestError  `problem.errors` names field, value and what is allowed
│   └── UnavailableError     the server is there, but cannot take this now
├── NoConnectionError        no answer at this address
│   └── NoWebSocketError     there is one, but WebSockets do not get through
├── AddressError             no address of a server
├── KeyFormatError           no API key
├── ProxyError               the environment's proxy cannot be used
├── NoServerError            no address is given and no stack runs here
├── UnexpectedAnswerError    the answer is not one of a Chorale server
├── JobEndedError            the job ended without a picture; carries the job
├── JobRunningError          the job has no picture yet
├── DownloadError            size or checksum differ from the job's result
├── OriginError              a file cannot be examined, or no trial certificate made; the message says why
├── AllowListError           the operator's list, or a new entry for it, is invalid
├── KeyRecordError           an API key of this service
│   ├── NoSuchKeyError
│   ├── TakenNameError       another key in use has this name
│   ├── FormerSecretsError   too many of its secrets are accepted already
│   └── UnreadableKeyError   its record is damaged
├── TimedOutError            the wait timed out, the job continues
└── StackError               the stack of this machine
    ├── AlreadyRunningError  another one uses this data directory
    ├── NotInstalledError    a part is missing from this environment
    ├── PortTakenError
    ├── RefusedStartError    a part would refuse its settings
    ├── DamagedQueueError    the queue's log lost more than a crash can take
    ├── UnwritableError      the data directory takes nothing more: its disk is full, or read-only
    └── PartFailedError      a process of the stack does not stay up
"""

from pathlib import Path

from api_schemas.answers import JobView
from api_schemas.errors import Problem


class ChoraleError(Exception):
    """Root of all errors of this package."""


class ProblemError(ChoraleError):
    """The server rejected the request; carries its problem body."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        super().__init__(_describe(problem))
        self.problem = problem
        self.retry_after_s = retry_after_s


class UnauthenticatedError(ProblemError):
    """No API key, or one that the server does not accept."""


class ForbiddenError(ProblemError):
    """Not with this key, or not from here."""


class NotFoundError(ProblemError):
    """No such job or picture."""


class ConflictError(ProblemError):
    """The job is not in a state for this."""


class InvalidRequestError(ProblemError):
    """A value is out of its limits."""


class UnavailableError(ProblemError):
    """Full queue, a limit of the API key, no model, or a part that cannot be reached."""


class NoConnectionError(ChoraleError):
    """No answer at this address."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"no answer from {url}: {reason}")
        self.url = url


class NoWebSocketError(NoConnectionError):
    """A proxy between refuses WebSockets; plain HTTP gets through."""


class AddressError(ChoraleError):
    """No address of a server."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"{url!r} is no address of a server; allowed is http://host:port or https://host, the port from 1 to"
            " 65535, with IPv6 in brackets: http://[::1]:8000"
        )


class KeyFormatError(ChoraleError):
    """No API key."""

    def __init__(self) -> None:
        super().__init__(
            "the API key has letters that no key has: give it by CHORALE_API_KEY, as it was shown"
        )


class ProxyError(ChoraleError):
    """No HTTP proxy."""


class NoServerError(ChoraleError):
    """No address is given, and no stack runs here."""

    def __init__(self) -> None:
        super().__init__("no server: start one with `chorale up`, or give an address by --url or CHORALE_URL")


class UnexpectedAnswerError(ChoraleError):
    """The answer is not one of a Chorale server."""


class JobEndedError(ChoraleError):
    """Failed, canceled or expired."""

    def __init__(self, job: JobView) -> None:
        reason = f": {job.error.message} ({job.error.code})" if job.error else ""
        super().__init__(f"job {job.id} {job.status}{reason}")
        self.job = job


class JobRunningError(ChoraleError):
    """Queued or processing."""

    def __init__(self, job: JobView) -> None:
        super().__init__(f"job {job.id} is {job.status} and has no picture yet")
        self.job = job


class DownloadError(ChoraleError):
    """Wrong size or checksum."""


class OriginError(ChoraleError):
    """A file cannot be examined, or no trial certificate made."""


class AllowListError(ChoraleError):
    """Not on the allow-list, or not valid for it."""


class KeyRecordError(ChoraleError):
    """An API key of this service cannot be made or changed so."""


class NoSuchKeyError(KeyRecordError):
    """No key has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no key {name}; `chorale keys list` shows all")


class TakenNameError(KeyRecordError):
    """Another key in use has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a key {name} already: give another name, or `chorale keys rotate` it")


class FormerSecretsError(KeyRecordError):
    """Too many secrets of a key are accepted already."""

    def __init__(self, name: str, allowed: int, wait_s: float) -> None:
        super().__init__(
            f"{name} has {allowed} former secrets that are still accepted, and may have no more: the first ends in"
            f" {wait_s:.0f} s, and `chorale keys rotate` without --overlap ends all"
        )


class UnreadableKeyError(KeyRecordError):
    """The record of a key is damaged."""

    def __init__(self, key_id: str) -> None:
        super().__init__(
            f"the record of the key chorale_{key_id} cannot be read: `chorale keys delete` forgets it"
        )


class TimedOutError(ChoraleError):
    """The wait timed out; the job continues."""


class StackError(ChoraleError):
    """The local stack failed."""


class AlreadyRunningError(StackError):
    """Another stack uses this data directory."""

    def __init__(self, folder: Path, url: str | None) -> None:
        where = f"at {url}" if url else "and is starting"
        super().__init__(f"a stack with the data directory {folder} already runs {where}")
        self.url = url


class NotInstalledError(StackError):
    """A part is missing from this environment."""


class PortTakenError(StackError):
    """The port is in use."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} of {host} is taken: give another one by --port, or 0 for any")


class RefusedStartError(StackError):
    """A part would refuse to start with these settings; each is told by its option or variable."""


class DamagedQueueError(StackError):
    """Going on would lose what was acknowledged, so the operator decides."""

    def __init__(self, what: str, loss: str) -> None:
        super().__init__(
            f"{what}: `chorale doctor --repair` lets the queue start again, which costs {loss};"
            " a copy of what it takes away is kept"
        )


class UnwritableError(StackError):
    """A path of the data directory cannot be written; says which, why and how much is free."""


class PartFailedError(StackError):
    """A process of the stack does not stay up."""


def _describe(problem: Problem) -> str:
    if not problem.errors:
        return problem.detail
    return "; ".join(f"{each.field} {each.value}: {each.allowed}" for each in problem.errors)

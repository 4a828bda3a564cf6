"""What a job finds around it. RQ calls `run_job(job_id)` with nothing else, so it lies in a context."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from redis import Redis

from api_schemas.catalog import ModelCard
from worker.messages import Command, Report
from worker.pace import Pace
from worker.storage import Storage


class Engine(Protocol):
    """The engine process, as a job sees it."""

    def say(self, command: Command) -> None: ...

    def hear(self, timeout_s: float) -> Report | None: ...

    def quiet(self, patience_s: float) -> None: ...

    def restart(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a job waits for what, in seconds, and how often it is tried."""

    stall_s: float
    storage_s: float
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Workplace:
    """Everything of the worker that one job may use.

    Args:
        worker: name of the worker.
        stop: set when the worker has to go.
        cancel: set when an operator stops this job through RQ.
        renew_lease: keeps the job from being given to another worker; cheap to call often.
    """

    redis: "Redis"
    storage: Storage
    engine: Engine
    card: ModelCard
    pace: Pace
    patience: Patience
    worker: str
    work_dir: Path
    stop: Event
    cancel: Event
    renew_lease: Callable[[], None]


WORKPLACE: ContextVar[Workplace] = ContextVar("workplace")

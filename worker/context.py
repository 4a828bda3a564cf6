"""What one job may use of its worker. RQ calls `run_job(job_id)` with nothing else, so this is a context variable."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from redis import Redis

from api_schemas.catalog import ModelCard
from worker.machine import Machine
from worker.marking import UNMARKED, Marking
from worker.process.protocol import Command, Report
from worker.storage import Storage

_SMOOTHING = 0.7  # weight of the old estimate against a new measurement


@dataclass(slots=True)
class Pace:
    """Estimated seconds per tile prediction, guided where jobs are, and per megapixel to decode and to store."""

    tile_s: float
    decode_s: float
    store_s: float = 0.1  # 16384 x 16384 px: 23 s for PNG and pyramid on 2 cores

    def learn_tile(self, seconds: float) -> None:
        self.tile_s = _SMOOTHING * self.tile_s + (1 - _SMOOTHING) * seconds

    def learn_decode(self, seconds: float) -> None:
        self.decode_s = _SMOOTHING * self.decode_s + (1 - _SMOOTHING) * seconds

    def learn_store(self, seconds: float) -> None:
        self.store_s = _SMOOTHING * self.store_s + (1 - _SMOOTHING) * seconds

    def after_steps(self, work_left: float, megapixels: float) -> float:
        """Seconds until the end of a job that still has work for so many guided tiles."""
        return round(work_left * self.tile_s + megapixels * (self.decode_s + self.store_s), 1)

    def after_bands(self, megapixels_left: float, megapixels: float) -> float:
        """Seconds until the end of a job that is being decoded."""
        return round(megapixels_left * self.decode_s + megapixels * self.store_s, 1)


class Engine(Protocol):
    """What a job may ask of the engine process, which `worker.process.client` describes."""

    def send(self, command: Command) -> None: ...

    def receive(self, timeout_s: float) -> Report | None: ...

    def stop_job(self, timeout_s: float) -> None: ...

    def restart(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a job may wait, and how often it is tried.

    Args:
        stall_timeout_s: for the engine's next report.
        storage_timeout_s: in all, for a store or disk.
        max_attempts: without any progress.
        drain_timeout_s: for the end of a step, when the worker shuts down.
    """

    stall_timeout_s: float
    storage_timeout_s: float
    max_attempts: int
    drain_timeout_s: float


@dataclass(frozen=True, slots=True)
class JobContext:
    """All of the worker that one job may use.

    Args:
        worker: name of the worker.
        stop: set when the worker is to shut down.
        cancel: set when an operator stops this job through RQ.
        renew_lease: keeps the job from being given to another worker; cheap to call often.
        marking: of finished pictures.
    """

    redis: "Redis"
    storage: Storage
    machine: Machine
    engine: Engine
    card: ModelCard
    pace: Pace
    limits: Limits
    worker: str
    work_dir: Path
    stop: Event
    cancel: Event
    renew_lease: Callable[[], None]
    marking: Marking = UNMARKED


JOB_CONTEXT: ContextVar[JobContext] = ContextVar("job_context")

"""What a job finds around it. RQ calls `run_job(job_id)` with nothing else, so it lies in a context."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from redis import Redis

from api_schemas.catalog import ModelCard
from worker.process.protocol import Command, Report
from worker.storage import Storage

_MEMORY = 0.7  # weight of what was known when something new is measured


@dataclass(slots=True)
class Pace:
    """Seconds per tile prediction, and per megapixel to decode and to store."""

    tile_s: float
    decode_s: float
    store_s: float = 0.1  # 16384 x 16384 px: 23 s for PNG and pyramid on 2 cores

    def learn_tile(self, seconds: float) -> None:
        self.tile_s = _MEMORY * self.tile_s + (1 - _MEMORY) * seconds

    def learn_decode(self, seconds: float) -> None:
        self.decode_s = _MEMORY * self.decode_s + (1 - _MEMORY) * seconds

    def learn_store(self, seconds: float) -> None:
        self.store_s = _MEMORY * self.store_s + (1 - _MEMORY) * seconds

    def after_steps(self, tiles_left: int, megapixels: float) -> float:
        """Seconds until the end of a job that still has tiles to denoise."""
        return round(tiles_left * self.tile_s + megapixels * (self.decode_s + self.store_s), 1)

    def after_bands(self, megapixels_left: float, megapixels: float) -> float:
        """Seconds until the end of a job that is being decoded."""
        return round(megapixels_left * self.decode_s + megapixels * self.store_s, 1)


class Engine(Protocol):
    """The engine process, as a job sees it."""

    def send(self, command: Command) -> None: ...

    def receive(self, timeout_s: float) -> Report | None: ...

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

"""An engine that reports what a test says, and the context of a job around it."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import numpy as np
import torch

from tests.worker.bench import Bench
from worker.adapters.toy import Toy
from worker.context import JobContext, Limits, Pace
from worker.engine.generate import FinalState
from worker.machine import Machine
from worker.process.files import ImageFile
from worker.process.protocol import Command, Generate, Generated, Report
from worker.settings import WorkerSettings
from worker.state_files import write_final_state
from worker.storage import Storage

Script = Callable[[Generate], Iterator[Report | Exception | None]]


class ScriptedEngine:
    """Follows one script for each job that it gets.

    A script yields reports, None where nothing comes in time, and errors to be raised. After its end
    nothing comes.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = deque(scripts)
        self._running: Iterator[Report | Exception | None] = iter(())
        self.commands: list[Command] = []
        self.restarts = 0
        self.stops = 0

    @property
    def jobs(self) -> list[Generate]:
        return [command for command in self.commands if isinstance(command, Generate)]

    def send(self, command: Command) -> None:
        self.commands.append(command)
        if isinstance(command, Generate):
            self._running = self._scripts.popleft()(command)

    def receive(self, timeout_s: float) -> Report | None:
        answer = next(self._running, None)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            Event().wait(0.01)
        return answer

    def stop_job(self, timeout_s: float) -> None:
        self.stops += 1

    def restart(self) -> None:
        self.restarts += 1


def make_context(bench: Bench, engine: ScriptedEngine, folder: Path, **limits: float) -> JobContext:
    """A worker of the toy with that engine."""
    chosen = {
        "stall_timeout_s": 60,
        "storage_timeout_s": 60,
        "max_attempts": 3,
        "drain_timeout_s": 45,
    } | limits
    storage = Storage.open(WorkerSettings(store_url=bench.store.as_uri()))
    return JobContext(
        redis=bench.redis,
        storage=storage,
        machine=Machine(folder, storage, reserve_bytes=0),
        engine=engine,
        card=Toy().card,
        pace=Pace(tile_s=0.5, decode_s=0.25, store_s=0.125),
        limits=Limits(
            chosen["stall_timeout_s"],
            chosen["storage_timeout_s"],
            int(chosen["max_attempts"]),
            chosen["drain_timeout_s"],
        ),
        worker="w",
        work_dir=folder,
        stop=Event(),
        cancel=Event(),
        renew_lease=lambda: None,
    )


def write_picture(job: Generate, grey: int = 90) -> Generated:
    """All rows on disk, as the engine process leaves them."""
    height, width = job.request.height_px, job.request.width_px
    with ImageFile(job.folder / "image.tif", height, width) as image:
        image.write(0, np.full((height, width, 3), grey, np.uint8))
    state = job.folder / "state.safetensors"
    write_final_state(state, FinalState(torch.zeros(4, height // 8, width // 8), ()))
    return Generated(job.folder / "image.tif", state, 1.5)

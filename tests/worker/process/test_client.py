"""An engine process that is stopped by a signal is noticed, and one that is silent is told; neither runs here."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from api_schemas.generation import ResolvedRequest
from worker.errors import EngineLostError
from worker.process.client import EngineProcess
from worker.process.protocol import Generate
from worker.process.standstill import Standstill
from worker.settings import WorkerSettings

REQUEST = ResolvedRequest(model="toy", steps=4, guidance_scale=1.0, seed=7)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    """Stopped before it has imported anything."""
    with EngineProcess(WorkerSettings(model="toy"), tmp_path, still_s=0.3) as engine:
        os.kill(find_child(), signal.SIGSTOP)
        yield engine


def find_child() -> int:
    """The newest child of this process that Python has spawned."""
    spawned = [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]
    return max(spawned, key=lambda each: (each.create_time(), each.pid)).pid


def await_loss(engine: EngineProcess) -> str:
    while True:
        try:
            assert engine.receive(0.02) is None
        except EngineLostError as error:
            return str(error)


def test_an_engine_that_is_stopped_is_lost_and_replaced(engine: EngineProcess) -> None:
    """Also during a job, after which the next process owes no report."""
    stopped = find_child()
    engine.send(Generate(REQUEST, Path(), None, {}))
    assert await_loss(engine).startswith(f"the engine process {stopped} stood still for 0.3 s")
    engine.restart()
    assert not psutil.pid_exists(stopped)
    assert find_child() != stopped
    assert engine.trouble is None


def test_an_idle_engine_that_is_stopped_is_replaced_too(engine: EngineProcess) -> None:
    stopped = find_child()
    while psutil.pid_exists(stopped):
        assert engine.check() is None
        time.sleep(0.02)


def test_work_without_any_report_is_told(tmp_path: Path) -> None:
    settings = WorkerSettings(model="toy")
    with (
        EngineProcess(settings, tmp_path, silent_s=60) as patient,
        EngineProcess(settings, tmp_path, silent_s=0) as hasty,
    ):
        assert hasty.trouble is None  # an idle one has nothing to report
        for engine in (patient, hasty):
            engine.send(Generate(REQUEST, Path(), None, {}))
        assert patient.trouble is None
        assert re.fullmatch(r"degraded: no progress for \d+ s", str(hasty.trouble))


@pytest.fixture
def parent() -> Iterator[psutil.Popen]:
    """A process that sleeps, as its child does."""
    with psutil.Popen(["sh", "-c", "sleep 60 & wait"]) as parent:
        while not parent.children():
            time.sleep(0.01)
        yield parent
        for each in (*parent.children(), parent):
            each.kill()


def test_who_sleeps_or_is_continued_in_time_does_not_stand_still(parent: psutil.Popen) -> None:
    watch = Standstill(parent.pid, children=True, still_s=0.2)
    for change in (parent.suspend, parent.resume) * 4:
        change()
        time.sleep(0.06)
        assert watch.find() is None


def test_a_stopped_child_counts_where_it_is_asked_for(parent: psutil.Popen) -> None:
    parent.children()[0].suspend()
    alone, both = (Standstill(parent.pid, children=too, still_s=0.2) for too in (False, True))
    while both.find() is None:
        assert alone.find() is None
        time.sleep(0.02)

"""Several ranks sing one picture: the same bytes as one rank, in sickness too."""

import os
import signal

import pytest

from api_schemas import wire
from api_schemas.events import JobResumed
from tests.tiny_models import tiny_stable_diffusion
from tests.worker.bench import Bench
from tests.worker.processes import find_children, find_engine, is_running

STEPS = 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    return str(folder)


def submit(bench: Bench) -> str:
    """16 tiles a step, two predictions each."""
    return bench.submit(
        model="tiny", steps=STEPS, guidance_scale=3.0, prompt="lava", width_px=256, height_px=256
    )


def find_ranks(engine: int) -> list[int]:
    """The followers, by rank; process ids rise in the order of spawning."""
    return sorted(find_children(engine))[-1:]


def test_two_ranks_give_the_bytes_of_one_also_after_one_has_died(bench: Bench, tiny: str) -> None:
    alone = bench.start_worker(tiny)
    picture = bench.picture(bench.await_end(submit(bench)))
    alone.terminate()
    alone.wait()
    worker = bench.start_worker(tiny, devices="cpu,cpu")
    job = bench.await_end(submit(bench))
    assert bench.picture(job) == picture, bench.logs()
    engine = find_engine(worker.pid)
    (follower,) = find_ranks(engine)
    job_id = submit(bench)
    bench.await_event(job_id, "step.completed", 3)
    os.kill(follower, signal.SIGKILL)
    job = bench.await_end(job_id)
    (resumed,) = (event for event in bench.events(job_id) if isinstance(event, JobResumed))
    assert resumed.data.step >= 2
    assert bench.picture(job) == picture
    assert "degraded: lost cpu; sings on cpu" in bench.logs()

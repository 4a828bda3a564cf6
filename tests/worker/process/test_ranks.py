"""Several ranks make one picture: the same bytes as one rank, also after a rank has died."""

import os
import signal
from io import BytesIO

import pytest
from PIL import Image

from api_schemas import wire
from api_schemas.events import JobResumed, JobWarned
from tests.tiny_models import tiny_stable_diffusion
from tests.worker.bench import Bench
from tests.worker.processes import find_children, find_engine, is_running

STEPS = 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A multistep solver: the picture depends on every step's state."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_stable_diffusion(folder)
    return str(folder)


def submit(bench: Bench, steps: int = STEPS) -> str:
    """A cascade of 64, 128 and 256 px: 1, 4 and 16 tiles a step and more, two predictions for each prompt in it.

    A mask, which is scaled, lies over a feathered polygon. Bytes are those of one batch shape, which a worker chooses
    by its ranks unless it is named.
    """
    file, mask = BytesIO(), Image.new("RGB", (64, 64))
    mask.paste((255, 255, 255), (10, 0, 40, 30))
    mask.save(file, "PNG")
    grass = {"prompt": "grass", "shape": {"polygon": [[0, 200], [256, 90], [256, 256]]}, "seed": 4}
    return bench.submit(
        model="tiny",
        steps=steps,
        guidance_scale=3.0,
        prompt="lava",
        width_px=256,
        height_px=256,
        layout="cascade",
        advanced={"num_modules": 2},
        regions=[grass, {"prompt": "moss", "shape": {"mask": "region_mask_1"}}],
        pictures={"region_mask_1": {"sha256": "5" * 64, "width_px": 64, "height_px": 64}},
        stored={"region_mask_1": file.getvalue()},
    )


def find_followers(engine: int) -> list[int]:
    """By rank: process ids rise in the order of spawning."""
    return sorted(find_children(engine))


def test_ranks_give_the_bytes_of_one_also_after_one_has_died(bench: Bench, tiny: str) -> None:
    alone = bench.start_worker(tiny)
    first = bench.await_end(submit(bench))
    picture = bench.picture(first)
    warned = [event.data for event in bench.events(first.id) if isinstance(event, JobWarned)]
    assert [each.code for each in warned] == ["mask_scaled"]
    alone.terminate()
    assert alone.wait(30) == 0
    worker = bench.start_worker(tiny, devices="cpu,cpu")
    assert bench.picture(bench.await_end(submit(bench))) == picture
    engine = find_engine(worker.pid)
    (follower,) = find_followers(engine)
    job_id = submit(bench)
    bench.await_event(job_id, "step.completed", 3)
    assert bench.redis.keys(f"{wire.TROUBLE_KEY_PREFIX}*") == []
    os.kill(follower, signal.SIGKILL)
    job = bench.await_end(job_id)
    (resumed,) = (event for event in bench.events(job_id) if isinstance(event, JobResumed))
    assert resumed.data.step >= 1
    assert bench.picture(job) == picture
    assert find_followers(find_engine(worker.pid)) == []
    trouble = "degraded: lost cpu; continues on cpu"
    assert trouble in bench.logs()
    bench.await_that(lambda: bench.redis.keys(f"{wire.TROUBLE_KEY_PREFIX}*") != [], "word of the loss")
    (key,) = bench.redis.keys(f"{wire.TROUBLE_KEY_PREFIX}*")
    assert bench.redis.get(key) == trouble.encode()


def test_ranks_stop_within_a_step_keep_the_model_and_outlive_nobody(bench: Bench) -> None:
    worker = bench.start_worker("toy:delay_ms=200", devices="cpu,cpu")
    job_id = bench.submit(steps=100)
    bench.await_event(job_id, "step.completed")
    engine = find_engine(worker.pid)
    others = find_followers(engine)
    before = bench.types(job_id).count("step.completed")
    bench.redis.set(wire.cancel_key(job_id), "1")
    assert bench.await_end(job_id).status == "canceled"
    assert bench.types(job_id).count("step.completed") <= before + 2  # one ended while it was asked
    bench.make(steps=1)
    assert find_engine(worker.pid) == engine
    assert find_followers(engine) == others
    os.kill(engine, signal.SIGKILL)
    bench.await_that(lambda: not any(map(is_running, others)), "end of the ranks")
    # The leader's death is no follower's fault: nobody is left out. A worker that has to go hands its
    # job back, and takes its ranks with it.
    job_id = bench.submit(steps=100)
    bench.await_event(job_id, "step.completed")
    ranks = [find_engine(worker.pid), *find_followers(find_engine(worker.pid))]
    assert len(ranks) == 2
    worker.terminate()
    assert worker.wait(30) == 0
    assert bench.job(job_id).status == "queued"
    assert not any(map(is_running, ranks))


def test_no_rank_outlives_a_killed_worker(bench: Bench) -> None:
    worker = bench.start_worker(devices="cpu,cpu")
    bench.make(steps=1)
    engine = find_engine(worker.pid)
    ranks = [engine, *find_followers(engine)]
    assert len(ranks) == 2
    worker.kill()
    worker.wait()
    bench.await_that(lambda: not any(map(is_running, ranks)), "end of the ranks")

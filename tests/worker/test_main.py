"""Whole jobs through a real worker."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pyvips

from api_schemas import preview_frames, wire
from api_schemas.events import BandFinished, JobWarned, StepCompleted
from api_schemas.stored import read_card
from api_schemas.waiting import name_keys
from tests.conftest import S3Server, free_ports
from tests.tiny_models import tiny_stable_diffusion
from tests.worker.bench import Bench, result_of
from tests.worker.processes import command_of, find_children, find_engine, is_running
from worker.settings import WorkerSettings
from worker.storage import Storage


def test_a_job_ends_as_a_picture_with_its_pyramid(shared_bench: Bench) -> None:
    job = shared_bench.await_end(shared_bench.submit(width_px=1024, height_px=768))
    result = result_of(job)
    assert (result.width_px, result.height_px, result.media_type) == (1024, 768, "image/png")
    picture = shared_bench.picture(job)
    assert hashlib.sha256(picture).hexdigest() == result.sha256
    assert result.size_bytes == len(picture)
    stored = [shared_bench.store / key for key in shared_bench.files(result.pyramid_key)]
    assert result.stored_bytes == sum(path.stat().st_size for path in stored) > len(picture)
    assert f"{result.pyramid_key}/image.dzi" in shared_bench.files()
    assert f"{result.pyramid_key}/image_files/10/1_1.jpg" in shared_bench.files()
    image = pyvips.Image.new_from_buffer(picture, "")
    assert (image.width, image.height, image.bands) == (1024, 768, 3)
    assert image.deviate() > 10  # waves, not one colour


def test_the_log_tells_the_whole_story_in_order(shared_bench: Bench) -> None:
    job_id = shared_bench.submit(width_px=768, height_px=1024, steps=3)
    shared_bench.await_end(job_id)
    assert shared_bench.types(job_id) == [
        "job.queued", "job.started",
        "phase.started", *["step.completed"] * 3,
        "phase.started", *["band.finished"] * 2,
        "phase.started", "job.succeeded",
    ]  # fmt: skip
    events = shared_bench.events(job_id)
    assert [event.data.step for event in events if isinstance(event, StepCompleted)] == [1, 2, 3]
    bands = [event.data for event in events if isinstance(event, BandFinished)]
    assert [(band.top_px, band.height_px) for band in bands] == [(0, 512), (512, 512)]


def test_the_same_request_gives_the_same_bytes(shared_bench: Bench) -> None:
    picture = shared_bench.make()
    assert shared_bench.make() == picture
    assert shared_bench.make(prompt="other") != picture


def test_jobs_start_in_the_turns_of_their_keys_without_a_service(shared_bench: Bench) -> None:
    jobs = [shared_bench.submit(key_id=key_id, steps=8) for key_id in ("a", "a", "a", "b", "b")]
    ended = [shared_bench.await_end(job_id) for job_id in jobs]
    assert [job.status for job in ended] == ["succeeded"] * 5
    first, *others = sorted(ended, key=lambda job: job.started_at or 0)
    assert first.id == jobs[0]
    assert [job.key_id for job in others] == ["b", "a", "b", "a"]
    waiting, turns, _, limits, sizes, listed = name_keys(wire.queue_name("toy"))
    assert shared_bench.redis.exists(waiting, turns, limits, sizes, listed) == 0


def test_nothing_is_left_but_the_result(shared_bench: Bench) -> None:
    job_id = shared_bench.submit()
    result = result_of(shared_bench.await_end(job_id))
    prefix = result.image_key.rpartition("/")[0]
    # Checkpoints and scratch files are deleted just after the job's last event.
    shared_bench.await_that(
        lambda: all(key.startswith(prefix) for key in shared_bench.files(job_id)), "tidy store"
    )
    shared_bench.await_that(lambda: shared_bench.scratch() == [], "tidy scratch folder")


def test_little_is_kept_in_memory_of_jobs_that_have_ended(shared_bench: Bench) -> None:
    png = pyvips.Image.gaussnoise(256, 256).cast("uchar").bandjoin([0, 0]).write_to_buffer(".png")
    shared_bench.make(
        **{"width_px": 256, "height_px": 256, "output_format": "jpeg", "source": {}, "mask": MASK},
        stored={"source_image": png},
        pictures={"source_image": {"sha256": "5" * 64, "width_px": 256, "height_px": 256}},
    )
    shared_bench.await_that(lambda: shared_bench.scratch() == [], "tidy scratch folder")
    (worker,) = (child for child in find_children(os.getpid()) if "worker.main" in command_of(child))
    for process in (worker, find_engine(worker)):
        assert count_heaps(process) <= 2  # sixteen held 500 MiB after an hour of mixed pictures
        assert [file for file in files_below(shared_bench.store.parent, process) if "(deleted)" in file] == []


MASK = {"rectangle": {"left_px": 64, "top_px": 96, "width_px": 96, "height_px": 64}, "feather_px": 8}


def count_heaps(pid: int) -> int:
    """Of glibc: the first lies behind the program, others in 64 MiB each at a multiple of that (HEAP_MAX_SIZE)."""
    maps = psutil.Process(pid).memory_maps(grouped=False)
    spans = [[int(side, 16) for side in each.addr.split("-")] for each in maps]
    pairs = pairwise(spans)  # what is used of a heap, and what is not; all of one may be
    return 1 + sum(
        start % HEAP == 0 and (end == start + HEAP or end < start + HEAP <= last)
        for (start, end), (_, last) in pairs
    )


HEAP = 64 << 20


def files_below(folder: Path, pid: int) -> list[str]:
    """That a process has open, deleted ones too; proc_pid_fd(5)."""
    names = (os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir())
    return [name for name in names if name.startswith(str(folder))]


def test_previews_of_the_whole_canvas_are_kept_for_late_viewers(shared_bench: Bench) -> None:
    job_id = shared_bench.submit(width_px=1280, height_px=1024)
    shared_bench.await_end(job_id)
    frames = shared_bench.redis.hgetall(wire.previews_key(job_id))
    cells = {key.decode(): preview_frames.unpack_preview(frame) for key, frame in frames.items()}
    assert sorted(cells) == ["0,0", "0,512", "1024,0", "1024,512", "512,0", "512,512"]
    event, jpeg = cells["1024,512"]
    assert (event.data.width_px, event.data.height_px, event.data.phase) == (256, 512, "decode")
    assert pyvips.Image.new_from_buffer(jpeg, "").width == 128


def test_a_worker_announces_its_model_and_its_life(bench: Bench) -> None:
    worker = bench.start_worker()
    pattern = f"{wire.WORKER_KEY_PREFIX}*"
    bench.await_that(lambda: bench.redis.keys(pattern) != [], "heartbeat")
    (key,) = bench.redis.keys(pattern)
    assert 0 < bench.redis.ttl(key) <= 30
    memory = f"{wire.MEMORY_KEY_PREFIX}{key.decode().removeprefix(wire.WORKER_KEY_PREFIX)}"
    bench.await_that(lambda: int(bench.redis.get(memory) or 0) > 100 << 20, "memory, torch's included")
    assert 0 < bench.redis.ttl(memory) <= 30
    card = read_card(bench.redis.hget(wire.MODELS_KEY, "toy"))
    assert card.is_default
    assert card.tile_seconds is not None
    assert card.decode_needs[0].gib > 0
    worker.terminate()
    assert worker.wait(10) == 0
    assert bench.redis.keys(pattern) == []
    assert not bench.redis.exists(memory)


def test_a_job_in_another_models_queue_fails_and_says_so(shared_bench: Bench) -> None:
    job = shared_bench.await_end(shared_bench.submit(model="opera", queue_of="toy"))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "no_model")
    shared_bench.make()


def test_an_impossible_job_fails_and_the_worker_stays_healthy(bench: Bench) -> None:
    worker = bench.start_worker()
    job = bench.await_end(bench.submit(advanced={"tile_size_px": 128, "overlap_px": 2048}))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "engine_failed")
    engine = find_engine(worker.pid)
    bench.make()
    assert find_engine(worker.pid) == engine


def test_a_job_waits_for_the_worker_of_its_model(bench: Bench) -> None:
    bench.start_worker()
    waiting = bench.submit(model="late")
    assert bench.await_end(bench.submit()).status == "succeeded"
    assert bench.types(waiting) == ["job.queued"]
    bench.start_worker("toy:name=late")
    assert bench.await_end(waiting).status == "succeeded"


PICTURE = {"control_image": {"sha256": "5" * 64, "width_px": 8, "height_px": 8}}


def test_pictures_that_came_with_a_job_are_fetched_and_named_in_the_result(shared_bench: Bench) -> None:
    png = pyvips.Image.black(8, 8, bands=3).write_to_buffer(".png")
    job = shared_bench.await_end(shared_bench.submit(stored={"control_image": png}, pictures=PICTURE))
    assert job.status == "succeeded", job.error
    picture = pyvips.Image.new_from_buffer(shared_bench.picture(job), "")
    settings = next(picture.get(name) for name in picture.get_fields() if name.endswith("settings"))
    assert json.loads(settings)["pictures"] == PICTURE
    assert shared_bench.files(f"inputs/{job.id}") == [f"inputs/{job.id}/control_image.png"]  # for a retry


def test_a_job_whose_picture_is_gone_fails_and_says_so(shared_bench: Bench) -> None:
    job = shared_bench.await_end(shared_bench.submit(pictures=PICTURE))
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("input_missing", False)
    assert "control_image" in job.error.message


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(bench: Bench, tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")  # its text encoder reads 16 tokens
    bench.start_worker(str(tmp_path / "tiny"))
    options = {"model": "tiny", "width_px": 256, "height_px": 256, "steps": 1}
    short, long = (bench.submit(prompt=prompt, **options) for prompt in ("a b", "a b c d " * 5))
    assert bench.await_end(short).status == bench.await_end(long).status == "succeeded"
    assert "job.warned" not in bench.types(short)
    (warning,) = [event.data for event in bench.events(long) if isinstance(event, JobWarned)]
    assert (warning.code, warning.message) == (
        "prompt_cut",
        "prompt has 22 tokens; the model reads the first 16 and not the rest",
    )


def test_a_signal_between_jobs_ends_worker_and_engine(bench: Bench) -> None:
    worker = bench.start_worker()
    bench.make()
    engine = find_engine(worker.pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        worker.send_signal(number)
    assert worker.wait(30) == 0
    assert not is_running(engine)


def test_a_model_may_be_named_as_on_the_hub(bench: Bench, tmp_path: Path) -> None:
    """What was fetched once is enough where there is no way to the hub."""
    repository, commit = tmp_path / "models--someone--tiny", "5" * 40
    tiny_stable_diffusion(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    bench.start_worker("someone/tiny", hub=tmp_path)
    job = bench.await_end(bench.submit(model="tiny", width_px=256, height_px=256, steps=1))
    assert job.status == "succeeded", job.error
    assert bench.start_worker("someone/else", hub=tmp_path).wait(60) == 2
    assert "someone/else cannot be fetched from the hub" in bench.logs()


def test_a_missing_folder_is_refused(bench: Bench, tmp_path: Path) -> None:
    assert bench.start_worker(str(tmp_path / "nowhere")).wait(60) == 2
    assert "is neither a model folder nor on the allow-list" in bench.logs()


def test_the_consumer_is_free_of_torch() -> None:
    check = "import worker.serving, sys; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_job_is_stored_in_s3(bench: Bench, s3: S3Server) -> None:
    settings = {key.removeprefix("CHORALE_").lower(): value for key, value in s3.environment().items()}
    bench.start_worker(**settings)
    result = result_of(bench.await_end(bench.submit(width_px=1024, height_px=1024)))
    storage = Storage.open(WorkerSettings.model_validate(settings))
    deadline = time.monotonic() + 60
    while len(keys := storage.list_keys("")) > 30 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert result.image_key in keys
    assert f"{result.pyramid_key}/image_files/10/2_2.jpg" in keys


def test_a_worker_without_a_queue_server_says_so_and_shows_no_password(tmp_path: Path) -> None:
    """At once, before it has loaded its model."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    environment = {"CHORALE_REDIS_URL": f"redis://user:secret@{address}/0", "CHORALE_WORK_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "worker.main"],
        env=os.environ | environment | {"CHORALE_MODEL": "toy", "CHORALE_DEVICES": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stderr
        line = next(line for line in worker.stderr if "queue server" in line)
        worker.kill()
    assert address in line
    assert "secret" not in line

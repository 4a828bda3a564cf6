"""A lack of memory costs speed, a broken step costs the job; neither costs the worker."""

import pytest
from pydantic import ValidationError

from api_schemas.events import JobWarned
from tests.worker.bench import Bench
from tests.worker.processes import find_engine
from worker.settings import WorkerSettings


def test_a_batch_without_memory_is_halved_and_a_broken_tile_is_named(bench: Bench) -> None:
    worker = bench.start_worker("toy:oom_above=2,nan_at_step=4")
    undisturbed = bench.make(steps=2, embed_metadata=False)
    engine = find_engine(worker.pid)
    crowded = bench.await_end(bench.submit(steps=2, embed_metadata=False, advanced={"num_modules": 8}))
    warnings = [event.data for event in bench.events(crowded.id) if isinstance(event, JobWarned)]
    assert [warning.code for warning in warnings] == ["batch_halved"] * 2
    assert warnings[0].message == "no memory for batches of 8 predictions; going on with 4"
    assert bench.picture(crowded) == undisturbed
    broken = bench.await_end(bench.submit(steps=5, advanced={"tile_grid": "fixed", "overlap_px": 0}))
    assert broken.error is not None
    assert (broken.status, broken.error.code) == ("failed", "non_finite_latent")
    place = "rows 32 to 64, columns 0 to 32 of the latent"
    assert f"step 4 of 5, timestep 257.5: tile 3 of 4 ({place}) is not finite" in broken.error.message
    assert bench.make(steps=2, embed_metadata=False) == undisturbed
    assert find_engine(worker.pid) == engine


def test_a_device_that_does_not_exist_is_refused(bench: Bench) -> None:
    assert bench.start_worker(devices="cuda:977").wait(60) == 2
    assert "devices: there is no cuda:977; this machine has cpu" in bench.logs()


def test_a_model_that_does_not_work_is_refused_at_once(bench: Bench) -> None:
    """Whatever it raises, as here what is a digit and no number: another attempt would end no better."""
    assert bench.start_worker("toy:delay_ms=\u00b2").wait(60) == 2
    assert "is refused: ValueError: invalid literal for int()" in bench.logs()
    assert "loading again" not in bench.logs()


def test_a_model_without_memory_is_refused_before_it_is_loaded(bench: Bench) -> None:
    """As the second of two workers on one device, when the first has taken what there was."""
    assert bench.start_worker("toy:weights_gib=900000").wait(60) == 2
    assert "model toy:weights_gib=900000 needs about 900000.2 GiB" in bench.logs()
    assert "GiB free" in bench.logs()


@pytest.mark.parametrize("devices", ["gpu0", "cpu,cuda:0", "0,0", "cuda:-1", "1.5", "cpu,,cpu"])
def test_what_is_no_list_of_devices_is_refused_with_field_and_value(devices: str) -> None:
    with pytest.raises(ValidationError) as refused:
        WorkerSettings(devices=devices)
    (error,) = refused.value.errors()
    assert error["loc"] == ("devices",)
    assert repr(devices) in error["msg"]


def test_a_worker_with_a_wrong_setting_ends_and_says_which(bench: Bench) -> None:
    assert bench.start_worker(devices="0,0").wait(60) == 2
    assert "CHORALE_DEVICES" in bench.logs()
    assert repr("0,0") in bench.logs()

"""What a job begins with is what was stored, byte by byte, or the job says that it is not."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch

from api_schemas.generation import ResolvedRequest
from api_schemas.source import Source, SourceJob
from tests.worker.test_damage import flip_a_byte, leave, zero_the_second_half
from worker.engine.generate import FinalState
from worker.errors import JobFailedError
from worker.inputs import fetch_inputs, fetch_state
from worker.settings import WorkerSettings
from worker.state_files import write_final_state
from worker.storage import Storage

PARENT = "a" * 28


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def take_another(path: Path) -> None:
    """A whole picture, but not the one that was made."""
    pyvips.Image.black(64, 64, bands=3).write_to_file(str(path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("damage", [flip_a_byte, zero_the_second_half, cut, empty, take_another, leave])
def test_a_picture_of_another_job_is_compared_with_its_record(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    """Of every format: few of them have checksums of their own. Also what a first attempt has fetched is looked at again."""
    storage = Storage.open(WorkerSettings(store_url=(tmp_path / "store").as_uri()))
    folder, stored = tmp_path / "job", tmp_path / "store" / f"image.{suffix}"
    folder.mkdir()
    stored.parent.mkdir()
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    pyvips.Image.new_from_array(pixels).write_to_file(str(stored))
    made = stored.read_bytes()
    request = ResolvedRequest(
        model="m", steps=1, guidance_scale=1.0, seed=1, source=Source(job=PARENT),
        source_job=SourceJob(
            image_key=stored.name, width_px=64, height_px=64, sha256=hashlib.sha256(made).hexdigest()
        ),
    )  # fmt: skip
    fetched = fetch_inputs(storage, "job", request, folder)["source_image"]
    assert fetched.read_bytes() == made
    damage(fetched)
    assert fetch_inputs(storage, "job", request, folder)["source_image"].read_bytes() == made
    damage(stored)
    damage(fetched)
    if damage is leave:
        return
    with pytest.raises(JobFailedError, match=f"the picture of job {PARENT}, .* is damaged") as failed:
        fetch_inputs(storage, "job", request, folder)
    assert (failed.value.code, failed.value.retryable) == ("input_damaged", False)


def test_a_kept_state_that_is_damaged_or_gone_is_not_begun_with(tmp_path: Path) -> None:
    """The job then begins with the picture itself."""
    storage = Storage.open(WorkerSettings(store_url=(tmp_path / "store").as_uri()))
    kept = tmp_path / "kept.safetensors"
    write_final_state(kept, FinalState(torch.ones(4, 8, 8), ()))
    storage.put_file("whole", kept)
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    storage.put_file("damaged", kept)
    for key, found in (("whole", True), ("damaged", False), ("gone", False), (None, False)):
        job = SourceJob(image_key="any", width_px=64, height_px=64, state_key=key)
        request = ResolvedRequest(model="m", steps=1, guidance_scale=1.0, seed=1, source_job=job)
        (folder := tmp_path / str(key)).mkdir()
        assert (fetch_state(storage, request, folder) is not None) is found

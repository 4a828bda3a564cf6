"""The object store, as files and as S3."""

import time
from pathlib import Path

import pytest

from tests.conftest import S3Server, free_ports
from worker.checkpoints import Beginning, CheckpointStore
from worker.engine.denoise import Checkpoint
from worker.errors import StorageUnavailableError
from worker.process.protocol import CheckpointWritten
from worker.settings import WorkerSettings
from worker.state_files import read_checkpoint, write_checkpoint
from worker.storage import Storage

BIG = 12 << 20  # several parts


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Both kinds, empty."""
    if request.param == "file":
        return Storage.open(WorkerSettings(store_url=(tmp_path / "a store").as_uri()))
    server: S3Server = request.getfixturevalue("s3")
    settings = {key.removeprefix("CHORALE_").lower(): value for key, value in server.environment().items()}
    url = f"{server.url}/{time.time_ns()}"
    return Storage.open(WorkerSettings.model_validate(settings | {"store_url": url}))


def never() -> bool:
    return False


def test_what_is_put_is_what_one_gets(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * (BIG // 256))
    storage.put_file("a/b c/ü.bin", source, "image/png")
    assert storage.get_file("a/b c/ü.bin", target)
    assert target.read_bytes() == source.read_bytes()
    assert not storage.get_file("a/none", target)


def test_folders_are_listed_and_deleted(storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("image.dzi", "image_files/0/0_0.jpg", "image_files/1/0_0.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    storage.put_files("jobs/1/x", paths, folder, {".jpg": "image/jpeg"}, never)
    storage.put_file("jobs/10/y", folder / "image.dzi")
    keys = storage.list_keys("jobs/1")
    assert sorted(keys) == [
        "jobs/1/x/image.dzi",
        "jobs/1/x/image_files/0/0_0.jpg",
        "jobs/1/x/image_files/1/0_0.jpg",
    ]
    storage.delete([*keys, "jobs/1/never-was"])
    assert storage.list_keys("jobs/1") == []
    assert storage.list_keys("jobs/10") == ["jobs/10/y"]


def test_the_newest_checkpoint_of_any_attempt_is_found(storage: Storage, tmp_path: Path) -> None:
    for number, step in enumerate((3, 12, 5), start=1):
        path = tmp_path / f"{number}.safetensors"
        write_checkpoint(path, Checkpoint(step, {}, {}), 0.0)
        with CheckpointStore(storage, "job") as checkpoints:
            checkpoints.add(CheckpointWritten(step, path), attempt=number)
            while checkpoints.upload_next():
                time.sleep(0.01)
    with CheckpointStore(storage, "job") as checkpoints:
        found = checkpoints.find_newest(tmp_path)
        assert found.path is not None
        assert (found.step, read_checkpoint(found.path)[0].step) == (12, 12)
        checkpoints.delete_all()
        assert checkpoints.find_newest(tmp_path) == Beginning()


def test_a_store_that_is_away_says_so_soon(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    keys = {"store_access_key_id": "key", "store_secret_access_key": "secret"}
    settings = WorkerSettings.model_validate(keys | {"store_url": "s3://chorale", "store_endpoint": endpoint})
    (tmp_path / "file").write_text("x")
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError):
        Storage.open(settings).put_file("a", tmp_path / "file")
    assert time.monotonic() - began < 60  # the library's own retries go on for three minutes


def test_a_refused_key_is_a_store_that_is_away(s3: S3Server, tmp_path: Path) -> None:
    settings = {key.removeprefix("CHORALE_").lower(): value for key, value in s3.environment().items()}
    wrong = WorkerSettings.model_validate(settings | {"store_secret_access_key": "wrong"})
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageUnavailableError) as raised:
        Storage.open(wrong).put_file("a", tmp_path / "file")
    assert "wrong" not in str(raised.value)

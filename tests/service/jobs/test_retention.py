"""Ended jobs leave with all that belongs to them; others stay."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from obstore.store import S3Store
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api_schemas.events import Result
from api_schemas.wire import JOBS_KEY, children_key, input_key
from service.image_store import ImageStore
from service.job_queue import JobQueue
from service.job_store import JobStore
from service.jobs.intake import draw_job_id
from service.jobs.retention import Retention
from service.metrics import Metrics
from service.quotas.usage import UsageStore
from service.rq_queues import RqQueues
from service.settings import ServiceSettings
from service.unreadable import UnreadableRecords
from tests.conftest import S3Server
from tests.service.conftest import Serve
from tests.service.jobs.test_reconciler import eventually
from tests.story import Story

KEEP_S = 0.6
KEY_ID = "0123456789ab"


@pytest.fixture
def forgetful(serve_with: Serve, settings: ServiceSettings) -> Iterator[httpx.Client]:
    """A service that keeps jobs for less than a second."""
    url = serve_with(settings.model_copy(update={"retention_days": KEEP_S / 86_400}))
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def put(store_dir: Path, key: str) -> Path:
    path = store_dir / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def finish(story: Story, store_dir: Path, job_id: str) -> list[Path]:
    """End a job as a worker does; answers its files."""
    keys = [f"jobs/{job_id}/one/image.png", f"jobs/{job_id}/one/image_files/0/0_0.jpg"]
    keys += [input_key(job_id, "control_image"), f"checkpoints/{job_id}/0001.safetensors"]
    files = [put(store_dir, key) for key in keys]
    story.start(job_id)
    story.preview(job_id, 0, 0, 7)
    result = Result(
        image_key=keys[0], pyramid_key=f"jobs/{job_id}/one", media_type="image/png", width_px=1024,
        height_px=1024, size_bytes=1, sha256="0" * 64, engine_s=1.0,
    )  # fmt: skip
    story.succeed(job_id, result)
    return files


def test_an_ended_job_leaves_with_all_that_belongs_to_it(
    forgetful: httpx.Client, story: Story, redis: Redis, store_dir: Path
) -> None:
    webhook = {"url": "https://receiver.example", "secret": f"whsec_{'A' * 32}"}
    job_id = forgetful.post("/v1/jobs", json={"webhook": webhook}).json()["id"]
    files = finish(story, store_dir, job_id)
    redis.hset(f"chorale:deliveries:{job_id}", "job.succeeded/job", '{"outcome": "given_up"}')
    redis.delete("chorale:webhooks:due")
    ended = story.job(job_id).finished_at or 0.0
    assert eventually(lambda: forgetful.get(f"/v1/jobs/{job_id}").status_code == 404)
    assert time.time() - ended >= KEEP_S
    assert not any(path.exists() for path in files)
    assert forgetful.get("/v1/jobs").json()["data"] == []
    assert not [key for key in redis.scan_iter("*") if job_id.encode() in key]
    assert not redis.exists("chorale:jobs")


def test_a_job_that_has_not_ended_stays_however_old_it_is(
    forgetful: httpx.Client, story: Story, redis: Redis, store_dir: Path
) -> None:
    waiting, running, ended = (forgetful.post("/v1/jobs", json={}).json()["id"] for _ in range(3))
    for job_id in (waiting, running, ended):
        redis.zadd("chorale:jobs", {job_id: 1.0})
    story.start(running)
    kept = put(store_dir, input_key(running, "control_image"))
    finish(story, store_dir, ended)
    assert eventually(lambda: forgetful.get(f"/v1/jobs/{ended}").status_code == 404)
    assert forgetful.get(f"/v1/jobs/{waiting}").json()["status"] == "queued"
    assert forgetful.get(f"/v1/jobs/{running}").json()["status"] == "processing"
    assert kept.exists()


def test_many_jobs_of_one_moment_all_leave(forgetful: httpx.Client, story: Story, redis: Redis) -> None:
    ids = [f"{number:028x}" for number in range(450)]
    for job_id in ids:
        story.queue(job_id)
        story.cancel(job_id)
    redis.zadd("chorale:jobs", dict.fromkeys(ids, 1_700_000_000.25))
    assert eventually(lambda: not redis.exists("chorale:jobs"), timeout_s=20)


def test_by_default_jobs_stay(api: httpx.Client, story: Story, store_dir: Path, redis: Redis) -> None:
    job_id = api.post("/v1/jobs", json={}).json()["id"]
    files = finish(story, store_dir, job_id)
    redis.zadd("chorale:jobs", {job_id: 1.0})  # found at once, but it has just ended
    time.sleep(1)  # five passes
    assert api.get(f"/v1/jobs/{job_id}").status_code == 200
    assert all(path.exists() for path in files)


def test_a_picture_without_a_job_leaves_after_an_hour(
    api: httpx.Client, story: Story, store_dir: Path
) -> None:
    hour_ago = int(time.time() * 1000) - 3_700_000
    stranded = put(store_dir, input_key(f"{hour_ago:012x}{'0' * 16}", "control_image"))
    fresh = put(store_dir, input_key(draw_job_id(), "control_image"))
    assert eventually(lambda: not stranded.exists())
    assert fresh.exists()


def test_files_in_s3_leave_too(
    s3: S3Server, valkey: str, story: Story, serve_with: Serve, redis: Redis
) -> None:
    names = {"store_endpoint": s3.endpoint, "store_access_key_id": s3.access_key_id}
    settings = ServiceSettings.model_validate(
        {"redis_url": valkey, "store_url": s3.url, "store_secret_access_key": s3.secret_access_key}
        | {"reconcile_interval_s": 0.2, "retention_days": KEEP_S / 86_400}
        | names
    )
    store = S3Store(
        "chorale", endpoint=s3.endpoint, access_key_id=s3.access_key_id, region=s3.region,
        secret_access_key=s3.secret_access_key, client_options={"allow_http": True},
    )  # fmt: skip
    job_id = draw_job_id()
    for number in range(60):
        store.put(f"jobs/{job_id}/one/image_files/5/{number}_0.jpg", b"x")
    store.put(input_key(job_id, "control_image"), b"x")
    other = f"jobs/{draw_job_id()}/one/image.png"
    store.put(other, b"x")
    child = f"jobs/{draw_job_id()}/one/image_files"
    store.put(f"{child}/5/7_0.jpg", b"its own")
    asyncio.run(ImageStore.open(settings).copy_missing(f"jobs/{job_id}/one/image_files", child))
    story.queue(job_id)
    story.cancel(job_id)
    serve_with(settings)
    assert eventually(lambda: not redis.exists("chorale:jobs"), timeout_s=20)
    assert not [entry["path"] for batch in store.list(f"jobs/{job_id}/") for entry in batch]
    assert not [entry["path"] for batch in store.list(f"inputs/{job_id}/") for entry in batch]
    assert store.head(other)["size"] == 1
    assert bytes(store.get(f"{child}/5/7_0.jpg").bytes()) == b"its own"
    assert bytes(store.get(f"{child}/5/59_0.jpg").bytes()) == b"x"


def remove_older(settings: ServiceSettings, keep_s: float) -> None:
    """One pass of the service."""

    async def do() -> None:
        with Redis.from_url(settings.redis_url) as blocking:
            async with AsyncRedis.from_url(settings.redis_url) as client:
                unreadable = UnreadableRecords(Metrics())
                queue = JobQueue(client, RqQueues(blocking, unreadable, timeout_s=1, retries=1))
                images = ImageStore.open(settings)
                usage = UsageStore(client)
                jobs = JobStore(client, unreadable)
                await Retention(jobs, queue, images, usage, keep_s, 1).remove_expired()

    asyncio.run(do())


HOUR_S = 3600.0


def wrap_as_jpeg(text: str) -> bytes:
    """Between the marks that begin and end a picture."""
    return b"\xff\xd8" + text.encode() + b"\xff\xd9"


def test_tiles_that_a_child_has_in_common_outlive_its_parent_and_leave_with_the_last(
    api: httpx.Client, settings: ServiceSettings, story: Story, redis: Redis, store_dir: Path
) -> None:
    """Three generations: tile 0_0 is the first one's, 1_0 the second's own. Their key has what is stored, no more."""
    jobs = [draw_job_id() for _ in range(3)]
    prefixes = [f"jobs/{job_id}/one" for job_id in jobs]
    for number, job_id in enumerate(jobs):
        parent = jobs[number - 1] if number else None
        story.queue(job_id, key_id=KEY_ID, parent=parent, width_px=600)
        if number:
            redis.sadd(children_key(jobs[number - 1]), job_id)
        story.start(job_id)
        if number == 1:
            remove_older(settings, 0.0)
            assert api.get(f"/v1/jobs/{jobs[0]}").status_code == 200  # its child has not ended
        for name in (("0_0", "1_0"), ("1_0",), ())[number]:
            tile = put(store_dir, f"{prefixes[number]}/image_files/10/{name}.jpg")
            tile.write_bytes(wrap_as_jpeg(f"{name} of {number}"))
        result = Result(
            image_key=f"{prefixes[number]}/image.png", pyramid_key=prefixes[number], media_type="image/png",
            width_px=600, height_px=1024, size_bytes=0, sha256="0" * 64, engine_s=1.0,
            stored_bytes=count_bytes(store_dir / prefixes[number]), inherited_pyramids=prefixes[:number][::-1],
        )  # fmt: skip
        redis.zadd(JOBS_KEY, {job_id: number + 1})  # made long ago
        story.succeed(job_id, result, ago_s=(3 - number) * HOUR_S)
    for gone in range(3):
        tiles = [api.get(f"/v1/jobs/{jobs[2]}/image_files/10/{name}.jpg").content for name in ("0_0", "1_0")]
        assert tiles == [wrap_as_jpeg("0_0 of 0"), wrap_as_jpeg("1_0 of 1")]
        assert read_stored_bytes(settings) == count_bytes(store_dir / "jobs") > 0
        remove_older(settings, (2.5 - gone) * HOUR_S)
        assert api.get(f"/v1/jobs/{jobs[gone]}").status_code == 404
        assert not (store_dir / "jobs" / jobs[gone]).exists()
    assert not list((store_dir / "jobs").glob("**/*.jpg"))
    assert read_stored_bytes(settings) == 0


def read_stored_bytes(settings: ServiceSettings) -> int:
    """What the key has in the store, as it is counted."""

    async def do() -> int:
        async with AsyncRedis.from_url(settings.redis_url) as client:
            return (await UsageStore(client).read(KEY_ID)).store_bytes

    return asyncio.run(do())


def count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_tiles_of_a_grandparent_that_outlives_the_parent_are_kept_too(
    api: httpx.Client, settings: ServiceSettings, story: Story, redis: Redis, store_dir: Path
) -> None:
    """The first one waits for another child while the second goes."""
    first, second, third, other = (draw_job_id() for _ in range(4))
    prefixes = {job_id: f"jobs/{job_id}/one" for job_id in (first, second, third)}
    inherited = {first: [], second: [prefixes[first]], third: [prefixes[second], prefixes[first]]}
    for number, (job_id, parent) in enumerate(((first, None), (second, first), (third, second))):
        story.queue(job_id, parent=parent, width_px=600)
        if parent:
            redis.sadd(children_key(parent), job_id)
        story.start(job_id)
        tile = put(store_dir, f"{prefixes[job_id]}/image_files/10/{number}_0.jpg")
        tile.write_bytes(wrap_as_jpeg(job_id))
        result = Result(
            image_key=f"{prefixes[job_id]}/image.png", pyramid_key=prefixes[job_id], media_type="image/png",
            width_px=600, height_px=1024, size_bytes=1, sha256="0" * 64, engine_s=1.0,
            inherited_pyramids=inherited[job_id],
        )  # fmt: skip
        redis.zadd(JOBS_KEY, {job_id: number + 1})  # made long ago
        story.succeed(job_id, result, ago_s=(3 - number) * HOUR_S)
    story.queue(other, parent=first)
    redis.sadd(children_key(first), other)
    remove_older(settings, 1.5 * HOUR_S)
    gone = [api.get(f"/v1/jobs/{job_id}").status_code for job_id in (first, second, third)]
    assert gone == [200, 404, 200]
    story.start(other)
    story.cancel(other)
    remove_older(settings, 1.5 * HOUR_S)
    assert api.get(f"/v1/jobs/{first}").status_code == 404
    for number, job_id in enumerate((first, second)):
        answer = api.get(f"/v1/jobs/{third}/image_files/10/{number}_0.jpg")
        assert answer.content == wrap_as_jpeg(job_id), answer.text

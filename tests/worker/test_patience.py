"""A queue server that refuses to write is waited for, as long as it takes."""

from collections.abc import Iterator
from threading import Event, Timer

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ResponseError

from worker.patience import PatientRetry


@pytest.fixture
def full(valkey: str) -> Iterator[Redis]:
    """A server without memory for anything."""
    with Redis.from_url(valkey) as redis:
        redis.config_set("maxmemory", 1)
        yield redis
        redis.config_set("maxmemory", 0)


def connect(valkey: str, stop: Event) -> Redis:
    return Redis.from_url(valkey, retry=PatientRetry(NoBackoff(), 0, stop))


def test_what_was_refused_is_done_later_and_once(full: Redis, valkey: str) -> None:
    relief = Timer(0.3, full.config_set, ("maxmemory", 0))
    relief.start()
    with connect(valkey, Event()) as redis, redis.pipeline() as pipeline:
        pipeline.rpush("list", "a")
        pipeline.rpush("list", "b")
        assert pipeline.execute() == [1, 2]
        redis.rpush("list", "c")
        assert redis.lrange("list", 0, -1) == [b"a", b"b", b"c"]
    relief.join()


def test_who_is_told_to_stop_waits_no_longer(full: Redis, valkey: str) -> None:
    stop = Event()
    Timer(0.3, stop.set).start()
    with connect(valkey, stop) as redis, pytest.raises(OutOfMemoryError):
        redis.set("key", "value")
    assert stop.is_set()


def test_other_refusals_are_errors_at_once(valkey: str) -> None:
    with connect(valkey, Event()) as redis:
        redis.set("key", "no number")
        with pytest.raises(ResponseError, match="not an integer"):
            redis.incr("key")

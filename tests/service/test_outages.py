"""What a real server's refusals are told as: by their cause, and without addresses."""

from collections.abc import Iterator

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.outages import explain_queue


@pytest.fixture
def server(valkey: str) -> Iterator[Redis]:
    with Redis.from_url(valkey) as redis:
        yield redis
        redis.config_set("maxmemory", 0)
        redis.replicaof("NO", "ONE")


def refuse(redis: Redis) -> tuple[str, str]:
    with pytest.raises(RedisError) as raised:
        redis.set("key", "value")
    outage = explain_queue(raised.value)
    return outage.reach, outage.message


def test_a_refusal_names_its_cause(server: Redis) -> None:
    server.config_set("maxmemory", 1)
    assert refuse(server) == ("full", "the queue refuses to write: the memory of its server is full")
    server.config_set("maxmemory", 0)
    server.replicaof("127.0.0.1", "1")
    assert refuse(server) == ("unwritable", "the queue refuses to write: its server is a replica")


def test_a_server_that_is_away_has_no_address() -> None:
    away = Redis(unix_socket_path="/nowhere/queue.sock", retry=Retry(NoBackoff(), 0))
    assert refuse(away) == ("unreachable", "the queue cannot be reached")

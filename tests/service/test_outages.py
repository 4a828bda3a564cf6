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


def test_what_a_server_does_answer_is_not_told_as_its_absence(server: Redis) -> None:
    server.rpush("list", "1")
    for command, cause in {"GET": "another type", "GETT": "refuses a command"}.items():
        with pytest.raises(RedisError) as raised:
            server.execute_command(command, "list")
        assert explain_queue(raised.value).reach == "unwritable"
        assert cause in explain_queue(raised.value).message


def test_a_server_that_is_away_has_no_address() -> None:
    away = Redis(unix_socket_path="/nowhere/queue.sock", retry=Retry(NoBackoff(), 0))
    assert refuse(away) == ("unreachable", "the queue cannot be reached")

"""Garbage under every key of a running stack stops neither the API nor the worker, and no other job."""

import time
from contextlib import suppress
from pathlib import Path

from redis import Redis

from api_schemas.generation import GenerationRequest
from chorale.client import Client
from chorale.errors import ChoraleError
from tests.poison import Poison, change_type, spoil
from tests.stack import Stack, running_stack

SMALL = GenerationRequest(prompt="lava", width_px=64, height_px=64, steps=1)
LONG = GenerationRequest(prompt="tide", width_px=256, height_px=256, steps=12)
PATIENCE_S = 60


def test_garbage_under_all_keys_of_a_running_stack(tmp_path: Path, valkey: str) -> None:
    settings = {"CHORALE_RECONCILE_INTERVAL_S": "0.3"}
    with (
        running_stack(tmp_path, valkey, "toy:delay_ms=50", **settings) as stack,
        Client(stack.url) as client,
        Redis.from_url(valkey) as redis,
    ):
        spoil_all(client, redis, spoil)
        await_picture(stack, client)
        assert "Traceback" not in stack.logs()
        spoil_all(client, redis, change_type)
        await_picture(stack, client)
        assert (stack.api.poll(), stack.worker.poll()) == (None, None)
        assert client.readiness().ready


def spoil_all(client: Client, redis: Redis, poison: Poison) -> None:
    """While a job runs, another waits, and a third has ended."""
    client.wait(client.create(SMALL, idempotency_key="mine").id)
    running, _ = client.create(LONG).id, client.create(SMALL).id
    while client.get(running).progress is None:
        time.sleep(0.05)
    keys = sorted(redis.scan_iter())
    kinds = {key.split(b":")[1] for key in keys}
    assert {b"job", b"events", b"live", b"models", b"worker", b"wip", b"queue", b"executions"} <= kinds
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

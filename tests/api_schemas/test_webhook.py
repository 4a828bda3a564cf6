"""Who is told of what, by the script that appends events; and a request's secrets are in no dump."""

import base64
import json
import time

import pytest
from pydantic import ValidationError
from redis import Redis

from api_schemas.catalog import Cost
from api_schemas.events import CanceledData, JobCanceled, JobQueued, JobStarted, QueuedData, StartedData
from api_schemas.generation import GenerationRequest, ResolvedRequest
from api_schemas.job import apply, begin
from api_schemas.webhook import DUE_KEY, Webhook, hide_secrets, webhook_key, write_webhook
from api_schemas.wire import APPEND_EVENT, append_event

SECRET = f"whsec_{base64.b64encode(b'k' * 24).decode()}"
REQUEST = ResolvedRequest(model="glow", steps=4, guidance_scale=1.0, seed=7)
COST = Cost(tiles=1, megapixel_steps=1.0, vram_gib=0.1)
HOOKS = {
    "own": ("job", "one", "job.started job.canceled"),
    "of its key": ("key", "abc", "job.failed job.canceled job.expired"),
    "of another job": ("job", "two", "job.started job.canceled"),
    "of another key": ("key", "abcd", "job.started job.canceled"),
    "without keys": ("key", "", "job.started job.canceled"),
}


def tell(redis: Redis) -> set[bytes]:
    """What is due after a job of the key `abc` has begun and was canceled."""
    about = {"job_id": "one", "attempt": 1, "ts": time.time()}
    queued = JobQueued(**about, data=QueuedData(request=REQUEST, cost=COST, key_id="abc"))
    job, seq = begin(queued), ""
    for event in (
        queued,
        JobStarted(**about, data=StartedData(worker="w", execution="e")),
        JobCanceled(**about, data=CanceledData(reason="by hand")),
    ):
        job = apply(job, event)
        keys, arguments = append_event(job, event, after=seq)
        seq = redis.eval(APPEND_EVENT, len(keys), *keys, *arguments).decode()
        assert "-" in seq
    return set(redis.zrange(DUE_KEY, 0, -1))


def test_the_webhooks_of_a_job_and_its_key_are_told_what_they_want_and_no_others(valkey: str) -> None:
    with Redis.from_url(valkey) as redis:
        for endpoint, owner, events in HOOKS.values():
            redis.hset(webhook_key(endpoint, owner), "events", events)
        assert tell(redis) == {b"one/job.started/job", b"one/job.canceled/job", b"one/job.canceled/key"}


def test_one_that_is_disabled_is_not_told(valkey: str) -> None:
    with Redis.from_url(valkey) as redis:
        redis.hset(webhook_key("job", "one"), mapping={"events": "job.canceled", "disabled": "1"})
        assert tell(redis) == set()


def test_no_damage_to_what_webhooks_have_keeps_an_event_from_being_written(valkey: str) -> None:
    with Redis.from_url(valkey) as redis:
        redis.set(webhook_key("job", "one"), "1")
        redis.set(DUE_KEY, "1")
        redis.hset(webhook_key("key", "abc"), "events", "job.canceled")
        assert tell(redis) == {b"one/job.canceled/key"}


def test_a_request_is_dumped_without_its_webhook_and_sent_with_its_secrets() -> None:
    given = {"url": "https://a.example/x", "secret": SECRET, "former_secrets": [SECRET]}
    request = GenerationRequest.model_validate({"prompt": "lava", "webhook": given})
    assert write_webhook(request.webhook) == given
    resolved = ResolvedRequest.model_validate(
        request.model_dump() | REQUEST.model_dump(exclude_defaults=True)
    )
    shown = [
        repr(request),
        str(request.model_dump()),
        request.model_dump_json(),
        request.webhook.model_dump_json(),
    ]
    for text in [*shown, resolved.model_dump_json(), repr(resolved)]:
        assert SECRET not in text
    assert all("a.example" not in text for text in (*shown[:3], resolved.model_dump_json()))


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "word", SECRET[6:], SECRET[:-8], "whsec_" + "A" * 88, "whsec_é"]
)
def test_a_secret_that_the_library_would_not_know_is_refused_without_being_told(secret: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Webhook(url="https://a.example", secret=secret)
    (error,) = caught.value.errors()
    assert error["msg"].startswith("Value error, whsec_ and the base64 of 24 to 64 random bytes")
    assert hide_secrets(error["input"], [str(part) for part in error["loc"]]) == "**********"


def test_secrets_are_hidden_wherever_they_stand() -> None:
    sent = {
        "webhook": {"url": "u", "secret": "s1", "former_secrets": ["s2"], "other": [SECRET, {"x": SECRET}]}
    }
    assert json.dumps(hide_secrets(sent)).count("*" * 10) == 4
    assert hide_secrets({"prompt": "a secret garden"}) == {"prompt": "a secret garden"}

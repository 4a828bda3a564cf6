"""One record that cannot be read is skipped, told once and counted, and all others are as before."""

import time
from contextlib import suppress

import httpx
import pytest
from redis import Redis
from redis.exceptions import ResponseError

from api_schemas.wire import cancel_key
from service.settings import ServiceSettings
from tests.poison import Poison, change_type, spoil
from tests.story import CARD, Story

PATIENCE_S = 20
OTHER = CARD.model_copy(update={"name": "ember", "is_default": False})


class Scene:
    """Jobs in every state, the keys that they have in Redis, and how to have all of them again."""

    def __init__(self, api: httpx.Client, redis: Redis, story: Story) -> None:
        self._api, self._redis, self._story = api, redis, story
        story.publish(OTHER, worker="w2")
        posted = [
            api.post("/v1/jobs", json={"prompt": "lava"}, headers={"Idempotency-Key": key}) for key in "ab"
        ]
        self.spoilt, self.running = (answer.json()["id"] for answer in posted)
        story.preview(self.spoilt, 0, 0, level=1)
        redis.set(cancel_key(self.spoilt), "1")
        story.start(self.running)
        story.step(self.running, 1)
        self._kept = {key: redis.dump(key) for key in redis.scan_iter()}

    def list_keys(self) -> list[bytes]:
        """All but those of the job that is to be as before."""
        return [key for key in sorted(self._kept) if self.running.encode() not in key]

    def restore(self) -> None:
        with self._redis.pipeline() as transaction:
            transaction.flushall()
            for key, value in self._kept.items():
                transaction.restore(key, 0, value)
            transaction.execute()

    def check(self) -> None:
        """Whatever is wrong elsewhere, within a moment everything answers."""
        deadline = time.monotonic() + PATIENCE_S
        while self._faults():
            assert time.monotonic() < deadline, self._faults()
            with suppress(ResponseError):  # as a living worker does every few seconds
                self._story.publish(OTHER, worker="w2")
            time.sleep(0.05)

    def _faults(self) -> list[str]:
        """What is not as it should be; a 500 is never tolerated."""
        api, answers = self._api, dict[str, httpx.Response]()
        answers["health"] = api.get("/healthz")
        answers["metrics"] = api.get("/metrics")
        answers["models"] = api.get("/v1/models")
        answers["ready"] = api.get("/readyz")
        answers["list"] = api.get("/v1/jobs")
        answers["job"] = api.get(f"/v1/jobs/{self.running}")
        answers["post"] = api.post("/v1/jobs", json={"prompt": "lava"})
        answers["spoilt"] = api.get(f"/v1/jobs/{self.spoilt}")
        answers["tile"] = api.get(f"/v1/jobs/{self.spoilt}/tiles/0/0_0")
        assert all(answer.status_code != 500 for answer in answers.values()), answers
        expected = {"post": (202,), "spoilt": (200, 404, 410), "tile": (200, 404, 410)}
        faults = [
            name for name, answer in answers.items() if answer.status_code not in expected.get(name, (200,))
        ]
        if answers["list"].is_success and self.running not in answers["list"].text:
            faults.append("not listed")
        return faults


@pytest.fixture
def settings(settings: ServiceSettings) -> ServiceSettings:
    return settings.model_copy(update={"reconcile_interval_s": 0.05})


@pytest.mark.parametrize("poison", [spoil, change_type])
def test_whatever_key_holds_garbage_all_else_works(
    api: httpx.Client, redis: Redis, story: Story, poison: Poison
) -> None:
    scene = Scene(api, redis, story)
    keys = scene.list_keys()
    assert len(keys) > 12, keys
    for key in keys:
        poison(redis, key)
        scene.check()
        scene.restore()
    metrics = api.get("/metrics").text
    assert "chorale_records_unreadable_total{kind=" in metrics

"""How many jobs of a key may wait, and of all keys."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api_schemas.events import JobStarted, StartedData
from api_schemas.wire import JOBS_KEY
from service.settings import ServiceSettings
from tests.service.callers import admit
from tests.service.conftest import serve
from tests.service.jobs.test_reconciler import eventually
from tests.service.routes.quotas.asking import (
    ADMIN,
    BURSTING,
    DRAINED,
    FREE,
    KEYS,
    QUEUED,
    WORKED,
    Call,
    finish,
    post,
    require_refusal,
    use,
)
from tests.story import Story


def test_jobs_that_wait_are_limited_and_places_come_back(call: Call, story: Story) -> None:
    client = call(QUEUED)
    first, second = post(client, "one"), post(client, "two")
    assert [first.status_code, second.status_code] == [202, 202]
    assert require_refusal(post(client, "three"), "queued_jobs")
    assert post(client, "one").json()["id"] == first.json()["id"]  # a repetition is no other job
    assert use(client).queued_jobs.model_dump() == {"used": 2, "limit": 2}
    client.post(f"/v1/jobs/{second.json()['id']}/cancel")
    third = post(client, "three")  # refused before, so it was not used up
    assert third.status_code == 202
    assert require_refusal(post(client), "queued_jobs")
    story.start(first.json()["id"])
    used = use(client)
    assert (used.queued_jobs.used, used.concurrent_jobs.used, used.concurrent_jobs.limit) == (1, 1, 1)
    assert post(client).status_code == 202
    assert [job["status"] for job in client.get("/v1/jobs").json()["data"]].count("queued") == 2


def test_the_wait_for_a_place_is_as_long_as_the_last_ones_took(call: Call, story: Story) -> None:
    client = call(DRAINED)
    ids = [post(client).json()["id"] for _ in range(3)]
    began = time.time()
    for number, job_id in enumerate(ids):  # one every seven seconds
        data = StartedData(worker="w1", execution="one")
        start = JobStarted(job_id=job_id, attempt=1, ts=began + 7 * number, data=data)
        story.append(start, install="one")

    def refill() -> int | None:
        while (answer := post(client)).status_code == 202:
            pass
        return require_refusal(answer, "queued_jobs")

    assert eventually(lambda: refill() == 7)


def test_variations_count_each_and_are_made_all_or_none(call: Call, story: Story) -> None:
    client = call(WORKED)
    parent = post(client).json()["id"]
    finish(story, parent, 10)
    path = f"/v1/jobs/{parent}/variations"
    cost = use(client).megapixel_steps.used
    wait_s = require_refusal(client.post(path, json={"count": 2}), "megapixel_steps")
    assert wait_s == pytest.approx(86_400, abs=5)
    assert len(client.get("/v1/jobs").json()["data"]) == 1
    assert client.post(path, json={"count": 1}).status_code == 202
    assert use(client).megapixel_steps.used == pytest.approx(2 * cost)
    crowd = call(QUEUED)
    parent = post(crowd).json()["id"]
    finish(story, parent, 10)
    path = f"/v1/jobs/{parent}/variations"
    never = crowd.post(path, json={"count": 3})
    assert (never.status_code, never.json()["errors"][0]["field"]) == (422, "count")
    made, again = (crowd.post(path, json={"count": 2}, headers={"Idempotency-Key": "two"}) for _ in range(2))
    assert (made.status_code, again.status_code) == (202, 202)  # though there are no more places
    ids = [[job["id"] for job in answer.json()["data"]] for answer in (made, again)]
    assert ids[0] == ids[1]
    assert use(crowd).queued_jobs.used == 2
    crowd.post(f"/v1/jobs/{ids[0][0]}/cancel")
    require_refusal(crowd.post(path, json={"count": 2}), "queued_jobs")
    assert use(crowd).queued_jobs.used == 1


def test_of_requests_for_several_jobs_at_once_a_refused_one_leaves_none(call: Call, story: Story) -> None:
    client = call(BURSTING)
    parent = post(client).json()["id"]
    finish(story, parent, 10)

    def vary(word: str) -> httpx.Response:
        headers = {"Idempotency-Key": word}
        return client.post(f"/v1/jobs/{parent}/variations", json={"count": 8}, headers=headers)

    def draw(word: str) -> httpx.Response:
        body, headers = {"prompt": "lava", "n": 8, "stream": True}, {"Idempotency-Key": word}
        with client.stream("POST", "/v1/images/generations", json=body, headers=headers) as answer:
            return answer  # the first event would come with the first picture

    for ask, taken in ((vary, 202), (draw, 200)):
        with ThreadPoolExecutor(3) as pool:
            answers = dict(zip("abc", pool.map(ask, "abc"), strict=True))
        assert sorted(answer.status_code for answer in answers.values()) == [taken, 429, 429]
        made = client.get("/v1/jobs", params={"status": "queued", "limit": 100}).json()["data"]
        assert (len(made), use(client).queued_jobs.used) == (8, 8)
        assert story.redis.zcard(JOBS_KEY) == len(client.get("/v1/jobs?limit=100").json()["data"])
        for job in made:
            assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "canceled"
        for word, answer in answers.items():
            assert ask(word).status_code == taken  # a repetition, or what was refused before
            count = use(client).queued_jobs.used
            assert count == (0 if answer.status_code == taken else 8)
            for job in client.get("/v1/jobs", params={"status": "queued"}).json()["data"]:
                client.post(f"/v1/jobs/{job['id']}/cancel")


def test_a_key_that_fills_the_queue_fills_it_for_itself(
    call: Call, story: Story, module_settings: ServiceSettings
) -> None:
    full = module_settings.model_copy(update={"max_queued": 6})
    with serve(full, lambda app: admit(app, KEYS)) as url:

        def fill(key: str) -> int:
            """Post until the queue is full; how many jobs the key could have."""
            count, headers = 0, {"Authorization": f"Bearer {key}"}
            while (answer := httpx.post(f"{url}/v1/jobs", json={}, headers=headers)).status_code == 202:
                count += 1
            assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
            assert "jobs that wait: at most 6" in answer.json()["detail"]
            assert int(answer.headers["Retry-After"]) > 0
            return count

        assert fill(FREE) == 6
        late = [fill(key) for key in (ADMIN, BURSTING, WORKED)]
        assert late == [2, 1, 1]  # one job of the first is at the worker's door: 5 places among 2, 3 and 4
        assert fill(FREE) == 0

"""Pages of jobs: complete and stable whatever comes in meanwhile."""

import httpx
import pytest
from redis import Redis

from tests.service.routes.test_jobs import create
from tests.story import Story


def test_pages_are_stable_while_jobs_come_in(api: httpx.Client, story: Story) -> None:
    early = [create(api).id for _ in range(7)]
    seen: list[str] = []
    cursor = None
    for _ in range(10):
        page = api.get("/v1/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["data"]]
        create(api)
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == early[::-1]


def test_jobs_of_one_moment_are_all_listed_once(api: httpx.Client, story: Story, redis: Redis) -> None:
    ids = [f"{number:028x}" for number in range(11)]
    for job_id in ids:
        story.queue(job_id)
        redis.zadd("chorale:jobs", {job_id: 1_700_000_000.25})
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = api.get("/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["data"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == sorted(ids, reverse=True)


def test_the_list_can_be_narrowed_to_a_status(api: httpx.Client, story: Story) -> None:
    jobs = [create(api).id for _ in range(9)]
    for job_id in jobs[::3]:
        api.post(f"/v1/jobs/{job_id}/cancel")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "2", "status": "canceled"} | ({"cursor": cursor} if cursor else {})
        page = api.get("/v1/jobs", params=params).json()
        assert {job["status"] for job in page["data"]} <= {"canceled"}
        seen += [job["id"] for job in page["data"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == jobs[::3][::-1]


@pytest.mark.parametrize("cursor", ["x", "bm9wZQ", "bmFuIGE", "aW5mIGE", "ü", "-" * 200])
def test_a_cursor_we_never_wrote_is_refused(api: httpx.Client, cursor: str) -> None:
    answer = api.get("/v1/jobs", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "cursor")

"""Places in the line and times until the end, over HTTP."""

import time
from typing import Any

import httpx

from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.routes.test_jobs import create
from tests.story import CARD, Story


def test_the_estimate_has_what_is_left_of_running_jobs(api: httpx.Client, story: Story) -> None:
    running = create(api, width_px=4096, height_px=4096)
    story.start(running.id)
    began, waiting = time.monotonic(), create(api)
    assert waiting.queue_position is not None
    least_s = 0.01 * (running.cost.tiles + (1 + waiting.queue_position) * waiting.cost.tiles)
    while not (
        least_s - (time.monotonic() - began) - 1 < api.get(waiting.urls.self).json()["eta_s"] <= least_s + 0.1
    ):  # the start is seen after a moment
        assert time.monotonic() - began < 10
        time.sleep(0.02)


def test_the_estimate_goes_by_the_work_of_those_that_wait(api: httpx.Client, story: Story) -> None:
    """Not by what short jobs took before."""
    short = create(api)
    story.start(short.id)
    story.cancel(short.id)
    began, last = time.monotonic(), [create(api, width_px=4096, height_px=4096) for _ in range(3)][-1]
    assert last.queue_position is not None
    all_s = 0.01 * (1 + last.queue_position) * last.cost.tiles
    while (eta_s := api.get(last.urls.self).json()["eta_s"]) < all_s - 0.1:  # jobs are seen after a moment
        assert time.monotonic() - began < 10
        time.sleep(0.02)
    assert eta_s <= all_s + 0.1


def test_the_place_in_the_line_counts_jobs_before(api: httpx.Client, story: Story) -> None:
    jobs = [create(api) for _ in range(4)]
    assert [job.queue_position for job in jobs] == [0, 1, 2, 3]
    api.post(jobs[1].urls.cancel)
    assert [api.get(job.urls.self).json()["queue_position"] for job in jobs] == [0, None, 1, 2]


def list_jobs(api: httpx.Client) -> list[dict[str, Any]]:
    return api.get("/v1/jobs").json()["data"]


def test_a_list_tells_the_same_places_and_times_as_each_job(api: httpx.Client, story: Story) -> None:
    story.publish(CARD.model_copy(update={"name": "slow/one:2", "is_default": False}), worker="w2")
    jobs = [create(api, model=("glow", "slow/one:2")[number % 2]) for number in range(8)]
    story.start(jobs[0].id)
    api.post(jobs[3].urls.cancel)
    before, shown, listed = (
        list_jobs(api),
        [api.get(job.urls.self).json() for job in jobs[::-1]],
        list_jobs(api),
    )
    # That one runs is noticed in between, perhaps, and what is left of it is less each time.
    times = [[view.pop("eta_s") or 0 for view in views] for views in zip(before, shown, listed, strict=True)]
    assert all(min(first, last) - 2 <= time_s <= max(first, last) + 2 for first, time_s, last in times)
    assert listed == shown
    places = {job["id"]: job["queue_position"] for job in listed}
    assert [places[job.id] for job in jobs[1::2]] == [0, None, 1, 2]
    assert places[jobs[0].id] is None  # it runs


def test_a_full_queue_says_when_to_come_back(
    serve_with: Serve, settings: ServiceSettings, story: Story
) -> None:
    with httpx.Client(base_url=serve_with(settings.model_copy(update={"max_queued": 2}))) as api:
        create(api)
        create(api)
        answer = api.post("/v1/jobs", json={"prompt": "lava"})
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
        assert answer.json()["retryable"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert len(api.get("/v1/jobs").json()["data"]) == 2  # nothing was recorded for the refused one


def test_each_model_has_its_own_line(serve_with: Serve, settings: ServiceSettings, story: Story) -> None:
    story.publish(CARD.model_copy(update={"name": "slow/one:2", "is_default": False}), worker="w2")
    with httpx.Client(base_url=serve_with(settings.model_copy(update={"max_queued": 2}))) as api:
        slow = [create(api, model="slow/one:2") for _ in range(2)]
        other = create(api)
        assert [job.queue_position for job in (*slow, other)] == [0, 1, 0]
        refused = api.post("/v1/jobs", json={"model": "slow/one:2"})
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
        assert 'chorale_jobs_waiting{model="slow/one:2"} 2.0' in api.get("/metrics").text
        assert api.post(slow[0].urls.cancel).json()["status"] == "canceled"
        assert api.get(slow[1].urls.self).json()["queue_position"] == 0

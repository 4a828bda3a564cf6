"""What holds only for a while: tickets, and keys that are revoked while a client is at work."""

import time
from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from api_schemas.wire import JOBS_KEY
from tests.service.keys.test_middleware import open_socket, refuse_socket
from tests.service.routes.following import JOB, ws_url
from tests.service.routes.openai_client import SOURCE
from tests.service.tenants import Tenants
from tests.story import Story


def test_a_ticket_opens_one_stream_of_one_job_once(
    tenants: Tenants, made: str, url: str, redis: Redis, story: Story
) -> None:
    def draw(client: httpx.Client = tenants.ann) -> str:
        return client.post(f"/v1/jobs/{JOB}/ticket").json()["ticket"]

    open_socket(f"{ws_url(url)}?ticket={(used := draw())}")
    refuse_socket(f"{ws_url(url)}?ticket={used}", 401)
    events = f"/v1/jobs/{JOB}/events"
    used = draw()
    assert "job.succeeded" in tenants.nobody.get(events, params={"ticket": used}).text
    assert tenants.nobody.get(events, params={"ticket": used}).status_code == 401
    other = "5" * 28
    story.queue(other, key_id=tenants.key_id(tenants.ann))
    refuse_socket(f"{ws_url(url, other)}?ticket={(used := draw())}", 401)
    refuse_socket(f"{ws_url(url)}?ticket={used}", 401)  # spent by the attempt
    for path in (f"/v1/jobs/{JOB}", f"/v1/jobs/{JOB}/image", "/v1/jobs"):
        assert tenants.nobody.get(path, params={"ticket": draw()}).status_code == 401
    refuse_socket(f"{ws_url(url)}?ticket={draw()}&ticket={draw()}", 401)
    assert tenants.bob.post(f"/v1/jobs/{JOB}/ticket").status_code == 404
    late = draw()
    (place,) = [key for key in redis.scan_iter("chorale:ticket:*") if 25 < redis.ttl(key) <= 30][:1]
    assert place
    for key in redis.scan_iter("chorale:ticket:*"):
        redis.delete(key)  # as they end by themselves
    refuse_socket(f"{ws_url(url)}?ticket={late}", 401)
    revoked = draw()
    tenants.records.revoke("ann")
    refuse_socket(f"{ws_url(url)}?ticket={revoked}", 401)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/v1/jobs", {"request": (None, '{"prompt": "moss"}')}),
        ("/v1/images/edits", {"prompt": (None, "moss"), "image": SOURCE}),
    ],
)
def test_a_key_that_is_revoked_while_a_body_comes_makes_no_job(
    tenants: Tenants, story: Story, path: str, parts: dict[str, tuple[str | None, str | bytes]]
) -> None:
    form = tenants.ann.build_request("POST", path, files=parts)
    body = form.read()
    held = f'chorale_bodies_held_bytes{{kind="upload"}} {len(body) - 1}.0'

    def come() -> Iterator[bytes]:
        yield body[:-1]
        while held not in tenants.operator.get("/metrics").text:
            time.sleep(0.01)
        tenants.records.revoke("ann")
        yield body[-1:]

    answer = tenants.ann.post(path, content=come(), headers={"Content-Type": form.headers["Content-Type"]})
    assert answer.status_code == 401
    assert "revoked" in answer.text
    assert not story.redis.exists(JOBS_KEY)

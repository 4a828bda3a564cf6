"""Who gets in: by whose key, through which door, and for how long."""

import asyncio
import json
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api_schemas.keys import Quota
from api_schemas.wire import api_key_key, jobs_of_key
from chorale.key_records import KeyRecords
from service.job_store import JobStore
from service.metrics import Metrics
from service.settings import ServiceSettings
from service.unreadable import UnreadableRecords
from tests.poison import NO_TEXT
from tests.service.conftest import Serve
from tests.service.routes.following import JOB, ws_url
from tests.service.tenants import Tenants, bearer
from tests.story import Story

OPEN = {"/healthz", "/readyz", "/v1/session", "/v1/files/{job_id}"}
VIEWER = "https://viewer.example"
STALE_S = 1.1  # a process remembers a key for a second


def doors(api: httpx.Client) -> Iterator[tuple[str, str]]:
    """Method and path of everything that is described."""
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        yield from ((method.upper(), path) for method in operations)


def knock(client: httpx.Client, method: str, path: str) -> httpx.Response:
    place = (
        re.sub(r"\{(level|column|row)\}", "0", path).replace("{job_id}", JOB).replace("{delivery_id}", "1")
    )
    body = {"region": {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 64, "height_px": 64}}}
    return client.request(method, place, json=body if method == "POST" else None)


def refuse_socket(url: str, status: int, **choices: object) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        connect(url, **choices)
    assert refusal.value.response.status_code == status


def open_socket(url: str, **choices: object) -> None:
    with connect(url, **choices) as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "job.queued"


def test_without_a_key_every_door_is_shut_but_those_that_hold_nothing(
    tenants: Tenants, made: str, url: str
) -> None:
    knocked = [(path, knock(tenants.nobody, method, path)) for method, path in doors(tenants.nobody)]
    assert {path for path, answer in knocked if answer.status_code != 401} == OPEN
    for _, answer in knocked:
        if answer.status_code == 401:
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="chorale"'
            if answer.content:  # HEAD has none, and OpenAI a form of its own
                told = answer.json()
                assert told.get("error", told)["code"] in ("unauthenticated", "invalid_api_key")
    refuse_socket(ws_url(url), 401)
    assert tenants.nobody.get("/nowhere").status_code == 401
    for path in ("/", "/docs", "/viewer/main.js", "/openapi.json"):
        assert tenants.nobody.get(path).status_code == 200, path


def test_a_job_of_another_key_is_nowhere(tenants: Tenants, made: str, url: str) -> None:
    for method, path in doors(tenants.bob):
        if "{job_id}" in path and path not in OPEN:
            ours, theirs = knock(tenants.ann, method, path), knock(tenants.bob, method, path)
            assert theirs.status_code == 404, path
            assert not theirs.content or theirs.json()["detail"] == f"no job '{JOB}'"
            assert ours.status_code not in (401, 403), path
            assert f"no job '{JOB}'" not in ours.text
    refuse_socket(ws_url(url), 404, additional_headers=bearer(tenants.key(tenants.bob)))
    open_socket(ws_url(url), additional_headers=bearer(tenants.key(tenants.ann)))


def test_no_cache_gives_what_is_of_one_key_to_another(tenants: Tenants, made: str) -> None:
    """By RFC 9111: what a cache may keep at all is for requests with the same key or cookie."""
    for path in ("", "/image", "/tiles/0/0_0"):
        headers = tenants.ann.get(f"/v1/jobs/{JOB}{path}").headers
        assert {"authorization", "cookie"} <= set(re.split(r",\s*", headers["Vary"].lower()))
        assert {"private", "no-store"} & set(re.split(r",\s*", headers["Cache-Control"]))
    assert tenants.ann.get("/v1/session").headers["Cache-Control"] == "no-store"


def test_nobody_begins_with_the_picture_of_another_key(tenants: Tenants, made: str, story: Story) -> None:
    request = {"prompt": "lava", "source": {"job": JOB}}
    refused, unknown = (
        tenants.bob.post("/v1/jobs", json=request),
        {"prompt": "lava", "source": {"job": "9" * 28}},
    )
    assert refused.status_code == 422
    told = tenants.bob.post("/v1/jobs", json=unknown).json()
    assert refused.json()["errors"][0]["allowed"] == told["errors"][0]["allowed"]
    assert tenants.ann.post("/v1/jobs", json=request).status_code == 202
    assert tenants.operator.post("/v1/jobs", json=request).status_code == 202


def test_lists_and_children_are_of_one_key_and_the_operators_of_all(
    tenants: Tenants, made: str, story: Story
) -> None:
    posted = {
        client: [client.post("/v1/jobs", json={"prompt": "lava"}).json()["id"] for _ in range(3)]
        for client in (tenants.ann, tenants.bob)
    }
    bobs = tenants.bob.get("/v1/jobs", params={"limit": 2}).json()
    rest = tenants.bob.get("/v1/jobs", params={"limit": 2, "cursor": bobs["next"]}).json()
    assert [job["id"] for job in bobs["data"] + rest["data"]] == posted[tenants.bob][::-1]
    assert rest["next"] is None
    assert {job["key_id"] for job in bobs["data"]} == {tenants.key_id(tenants.bob)}
    assert len(tenants.operator.get("/v1/jobs").json()["data"]) == 7
    child = tenants.operator.post(f"/v1/jobs/{JOB}/extend", json={"left_px": 64}).json()["id"]
    assert tenants.ann.get(f"/v1/jobs/{JOB}").json()["children"] == []
    assert tenants.operator.get(f"/v1/jobs/{JOB}").json()["children"] == [child]
    assert tenants.ann.get(f"/v1/jobs/{child}").status_code == 404


def test_an_idempotency_key_is_of_one_api_key(tenants: Tenants, story: Story) -> None:
    again = {"Idempotency-Key": "one"}
    made = [
        client.post("/v1/jobs", json={"prompt": "lava"}, headers=again).json()["id"]
        for client in (tenants.ann, tenants.bob, tenants.ann)
    ]
    assert made[0] == made[2] != made[1]


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [({"create"}, (202, 403, 403)), ({"read"}, (403, 200, 403)), ({"admin"}, (403, 403, 200))],
)
def test_a_key_does_what_its_scopes_say(
    api: httpx.Client, records: KeyRecords, story: Story, scopes: set[str], allowed: tuple[int, int, int]
) -> None:
    api.headers.update(bearer(records.create("one", frozenset(scopes))))
    answers = (
        api.post("/v1/jobs", json={"prompt": "lava"}),
        api.get("/v1/models"),
        api.get("/metrics"),
    )
    assert tuple(answer.status_code for answer in answers) == allowed
    for answer, scope in zip(answers, ("create", "read", "admin"), strict=True):
        if answer.status_code == 403:
            assert f"scope {scope}" in answer.json()["detail"]
            assert f'error="insufficient_scope", scope="{scope}"' in answer.headers["WWW-Authenticate"]
            assert answer.json()["code"] == "scope_missing"


def test_headers_of_any_other_form_let_nobody_in(tenants: Tenants) -> None:
    key = tenants.key(tenants.ann)
    _, key_id, secret = key.split("_")
    other = "0" if secret[0] != "0" else "1"
    forged = [
        "", "Bearer", f"Basic {key}", key, f"Bearer{key}", f"Bearer {key} {key}", f"Bearer {key},",
        f"Bearer {key[:-1]}", f"Bearer {key}0", f"Bearer {key.upper()}", f"Bearer chorale_{key_id}_",
        f"Bearer chorale_{key_id}_{other}{secret[1:]}", f"Bearer chorale_{'0' * 12}_{secret}",
        f"Bearer chorale_{tenants.key_id(tenants.bob)}_{secret}", f"Bearer chorale_{key_id[:-1]}*_{secret}",
        f"Bearer\t{key}", "Bearer \xff\xfe", f"Bearer {'a' * 30_000}",
    ]  # fmt: skip
    for value in forged:
        answer = tenants.nobody.get("/v1/models", headers=[(b"Authorization", value.encode("latin-1"))])
        assert answer.status_code == 401, value
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    twice = tenants.nobody.get("/v1/models", headers=[("Authorization", f"Bearer {key}")] * 2)
    assert twice.status_code == 401
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert (
            tenants.nobody.get("/v1/models", headers={"Authorization": f"{scheme} {key}"}).status_code == 200
        )


def test_a_secret_ends_with_its_key_or_after_a_rotation_with_its_overlap(
    tenants: Tenants, made: str, url: str
) -> None:
    for client in (tenants.ann, tenants.bob, tenants.operator):
        assert client.get("/v1/models").status_code == 200  # and is remembered for a second
    new = [tenants.records.rotate("ann", overlap_s=1.0), tenants.records.rotate("bob", overlap_s=0)]
    tenants.records.revoke("operator")
    assert tenants.ann.get("/v1/models").status_code == 200
    time.sleep(STALE_S)
    for client in (tenants.ann, tenants.bob, tenants.operator):
        assert client.get("/v1/models").status_code == 401
    refuse_socket(ws_url(url), 401, additional_headers=bearer(tenants.key(tenants.operator)))
    for key in new:
        assert tenants.nobody.get("/v1/models", headers=bearer(key)).status_code == 200


def test_this_machine_needs_keys_from_the_first_to_the_last(api: httpx.Client, records: KeyRecords) -> None:
    assert api.get("/v1/jobs").status_code == 200
    assert api.get("/v1/session").json() == {"keys_required": False, "key": None}
    key = records.create("ann", frozenset({"read"}))
    time.sleep(STALE_S)
    assert api.get("/v1/jobs").status_code == 401
    assert api.get("/v1/session").json() == {"keys_required": True, "key": None}
    assert api.get("/v1/session", headers=bearer(key)).json()["key"]["name"] == "ann"
    records.revoke("ann")
    assert api.get("/v1/jobs").status_code == 401
    records.delete("ann")
    assert api.get("/v1/jobs").status_code == 200


def test_an_address_that_others_reach_needs_keys_even_before_the_first(
    settings: ServiceSettings, serve_with: Serve, records: KeyRecords, story: Story
) -> None:
    url = serve_with(settings.model_copy(update={"host": "0.0.0.0"}))
    assert httpx.get(f"{url}/v1/models").status_code == 401
    key = records.create("ann", frozenset({"read"}))
    assert httpx.get(f"{url}/v1/models", headers=bearer(key)).status_code == 200
    assert httpx.get(f"{url}/metrics").status_code == 401


def test_only_an_operator_is_told_why_the_service_is_not_ready(tenants: Tenants, story: Story) -> None:
    short = tenants.nobody.get("/readyz").json()
    assert short["ready"] is True
    assert not any(short[name] for name in ("workers", "models", "degraded", "paused", "parts", "background"))
    assert tenants.ann.get("/readyz").json() == short
    assert tenants.operator.get("/readyz").json()["parts"]


def test_a_key_whose_record_is_damaged_lets_nobody_in_and_hinders_no_other(
    tenants: Tenants, redis: Redis
) -> None:
    place = api_key_key(tenants.key_id(tenants.ann))
    for spoil in (lambda: redis.set(place, NO_TEXT), lambda: (redis.delete(place), redis.sadd(place, "x"))):
        spoil()
        assert tenants.ann.get("/v1/models").status_code == 401
        assert tenants.bob.get("/v1/models").status_code == 200


def test_viewers_of_an_allowed_site_come_in_by_key(
    settings: ServiceSettings, serve_with: Serve, records: KeyRecords, story: Story
) -> None:
    """And read why they are refused; a cookie is neither asked for nor taken."""
    url = serve_with(settings.model_copy(update={"allowed_origins": (VIEWER,)}))
    key = records.create("ann", frozenset({"create", "read"}))
    story.queue(JOB, key_id=key.split("_")[1])
    crossing = {"Origin": VIEWER, "Sec-Fetch-Site": "cross-site"}
    tile = f"{url}/v1/jobs/{JOB}/tiles/0/0_0"
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    asking = httpx.options(tile, headers=crossing | asked)
    assert (asking.status_code, asking.headers["Access-Control-Allow-Origin"]) == (200, VIEWER)
    assert "authorization" in asking.headers["Access-Control-Allow-Headers"]
    refused, shown = httpx.get(tile, headers=crossing), httpx.get(tile, headers=crossing | bearer(key))
    assert (refused.status_code, shown.status_code) == (401, 200)
    for answer in (refused, shown):
        assert answer.headers["Access-Control-Allow-Origin"] == VIEWER
        assert "Access-Control-Allow-Credentials" not in answer.headers
    ticket = httpx.post(f"{url}/v1/jobs/{JOB}/ticket", headers=crossing | bearer(key)).json()["ticket"]
    open_socket(f"{ws_url(url)}?ticket={ticket}", additional_headers=crossing)


def test_the_quota_of_a_key_is_counted_from_its_first_call(
    api: httpx.Client, records: KeyRecords, story: Story
) -> None:
    operator = bearer(records.create("operator", frozenset({"admin", "read"})))
    limits = Quota(calls_per_minute=3, queued_jobs=1)
    key = bearer(records.create("ann", frozenset({"create", "read"}), limits))
    answers = [api.post("/v1/jobs", json={}, headers=key) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 429, 429, 429]
    assert [answer.json().get("code") for answer in answers[1:]] == ["quota_exceeded"] * 2 + ["rate_limited"]
    key_id = key["Authorization"].split("_")[1]
    used = api.get("/v1/usage", params={"key_id": key_id}, headers=operator).json()
    assert (used["key_id"], used["queued_jobs"]) == (key_id, {"used": 1, "limit": 1})
    assert (used["calls"]["used"], used["calls"]["limit"]) == (3, 3)


def test_the_list_of_a_key_is_made_again_after_it_was_lost_and_loses_what_is_deleted(
    tenants: Tenants, story: Story, redis: Redis, settings: ServiceSettings
) -> None:
    posted = [tenants.ann.post("/v1/jobs", json={"prompt": "lava"}).json()["id"] for _ in range(2)]
    tenants.bob.post("/v1/jobs", json={"prompt": "lava"})
    index = jobs_of_key(tenants.key_id(tenants.ann))
    redis.set(index, "no list")
    deadline = time.monotonic() + 20
    while (answer := tenants.ann.get("/v1/jobs")).status_code != 200 or len(answer.json()["data"]) < 2:
        assert answer.status_code in (200, 503)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [job["id"] for job in answer.json()["data"]] == posted[::-1]

    async def delete() -> None:
        async with AsyncRedis.from_url(settings.redis_url) as client:
            jobs = JobStore(client, UnreadableRecords(Metrics()))
            await jobs.delete(posted[0], None, tenants.key_id(tenants.ann))

    asyncio.run(delete())
    assert redis.zrange(index, 0, -1) == [posted[1].encode()]

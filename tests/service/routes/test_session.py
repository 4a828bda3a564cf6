"""Browsers sign in by a key and hold a cookie in its place."""

import json

import httpx
import pytest
from redis import Redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.routes.following import JOB, ws_url
from tests.service.tenants import Tenants


def sign_in(client: httpx.Client, key: str, **headers: str) -> httpx.Response:
    return client.post("/v1/session", json={"key": key}, headers=headers)


def test_a_cookie_is_worth_its_key_on_our_own_page_alone(
    tenants: Tenants, made: str, url: str, redis: Redis
) -> None:
    page, key = tenants.nobody, tenants.key(tenants.ann)
    answer = sign_in(page, key)
    assert answer.json()["key"]["name"] == "ann"
    attributes = answer.headers["Set-Cookie"].split("; ")[1:]
    assert set(attributes) == {"HttpOnly", "Max-Age=604800", "Path=/", "SameSite=strict"}
    assert page.get("/v1/session").json()["key"]["id"] == tenants.key_id(tenants.ann)
    assert page.get(f"/v1/jobs/{JOB}").status_code == 200
    assert page.post("/v1/jobs", json={"prompt": "lava"}).status_code == 202
    cookie = {"Cookie": f"chorale_session={page.cookies['chorale_session']}"}
    own = {"Sec-Fetch-Site": "same-origin", "Origin": url}
    with connect(ws_url(url), additional_headers=cookie | own) as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "job.queued"
    for foreign in (
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
    ):
        assert page.get(f"/v1/jobs/{JOB}", headers=foreign).status_code == 401
        assert page.post("/v1/jobs", json={"prompt": "lava"}, headers=foreign).status_code == 403
        assert page.delete("/v1/session", headers=foreign).status_code == 403
        with pytest.raises(InvalidStatus):
            connect(ws_url(url), additional_headers=cookie | foreign)
    word = page.cookies["chorale_session"]
    stored = [place for place in redis.scan_iter("*") if redis.type(place) == b"string"]
    for secret in (word, word.split(".")[1], key, key.split("_")[2]):
        assert not any(secret.encode() in place + (redis.get(place) or b"") for place in stored)


def test_a_session_ends_when_it_is_left_with_its_secret_and_with_its_key(
    tenants: Tenants, redis: Redis
) -> None:
    page = tenants.nobody
    sign_in(page, tenants.key(tenants.ann))
    left = {"Cookie": f"chorale_session={page.cookies['chorale_session']}"}
    assert page.delete("/v1/session").status_code == 204
    assert "chorale_session" not in page.cookies
    assert page.get("/v1/models", headers=left).status_code == 401
    for end in (lambda: tenants.records.rotate("bob", 0), lambda: tenants.records.revoke("operator")):
        tenant = tenants.bob if not page.cookies else tenants.operator
        sign_in(page, tenants.key(tenant))
        end()
        assert page.get("/v1/models").status_code == 401
    (place, *_) = redis.scan_iter("chorale:session:*")
    assert 0 < redis.ttl(place) <= 7 * 86_400


@pytest.mark.parametrize("key", ["", "chorale_", "chorale_000000000000_" + "0" * 64, "x" * 4000, "\ud800"])
def test_no_other_key_signs_in(tenants: Tenants, key: str) -> None:
    body = json.dumps({"key": key})
    answer = tenants.nobody.post("/v1/session", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 401, 422)
    assert not tenants.nobody.cookies


def test_behind_https_the_cookie_is_for_https_and_below_a_path_for_that(
    settings: ServiceSettings, serve_with: Serve, tenants: Tenants
) -> None:
    with httpx.Client(base_url=serve_with(settings.model_copy(update={"root_path": "/chorale"}))) as page:
        answer = sign_in(page, tenants.key(tenants.ann), **{"X-Forwarded-Proto": "https"})
        assert {"Secure", "Path=/chorale"} < set(answer.headers["Set-Cookie"].split("; "))
        word = answer.headers["Set-Cookie"].split(";")[0]
        for path in ("/v1/models", "/chorale/v1/models"):
            assert page.get(path, headers={"Cookie": word}).status_code == 200
            assert page.get(path).status_code == 401


def test_refusals_repeat_no_secret(tenants: Tenants) -> None:
    key = tenants.key(tenants.ann)
    for body in ({"key": key, "more": key}, {"keys": key}, [key], key):
        answer = tenants.nobody.post("/v1/session", json=body)
        assert answer.status_code == 422
        assert key.split("_")[2] not in answer.text
    assert key.split("_")[2] not in tenants.ann.get(f"/v1/jobs/{key}").text

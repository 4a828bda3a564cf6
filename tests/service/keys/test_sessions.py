"""Sessions of browsers: what opening one costs, how many there are, and what ends them."""

import httpx
from redis import Redis

from api_schemas.keys import Quota
from api_schemas.wire import sessions_of_key
from chorale.key_records import KeyRecords
from tests.service.tenants import Tenants, bearer
from tests.story import Story


def sign_in(browser: httpx.Client, key: str) -> str:
    """The word in the cookie."""
    browser.cookies.clear()
    answer = browser.post("/v1/session", json={"key": key})
    assert answer.status_code == 200
    return answer.cookies["chorale_session"]


def call(browser: httpx.Client, word: str, method: str = "GET", path: str = "/v1/models") -> int:
    browser.cookies.clear()
    return browser.request(method, path, headers={"Cookie": f"chorale_session={word}"}).status_code


def test_a_sign_in_is_a_call_of_its_key(url: str, records: KeyRecords, story: Story) -> None:
    key = records.create("ann", frozenset({"read"}), Quota(calls_per_minute=3))
    other = records.create("bob", frozenset({"read"}), Quota(calls_per_minute=3))
    with httpx.Client(base_url=url) as browser:
        signed_in = browser.post("/v1/session", json={"key": key})
        assert signed_in.headers["RateLimit"].startswith('"calls";r=2;')
        assert (
            browser.post("/v1/session", json={"key": key}).status_code == 200
        )  # counted once, by its cookie
        assert browser.get("/v1/models").status_code == 200
    refused = httpx.post(f"{url}/v1/session", json={"key": key})
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.headers["RateLimit"].startswith('"calls";r=0;')
    assert "Set-Cookie" not in refused.headers
    assert httpx.get(f"{url}/v1/models", headers=bearer(key)).status_code == 429
    assert httpx.get(f"{url}/v1/models", headers=bearer(other)).status_code == 200


def test_a_key_has_twenty_sessions_of_which_the_oldest_end(
    tenants: Tenants, api: httpx.Client, redis: Redis
) -> None:
    ann, places = tenants.key(tenants.ann), sessions_of_key(tenants.key_id(tenants.ann))
    redis.set(places, "no list")
    bobs = sign_in(api, tenants.key(tenants.bob))
    words = [sign_in(api, ann) for _ in range(22)]
    assert [call(api, word) for word in words] == [401, 401, *[200] * 20]
    assert len(redis.keys("chorale:session:*")) == 21
    assert call(api, words.pop(), "DELETE", "/v1/session") == 204
    words.append(sign_in(api, ann))  # in the place of the one that was left
    assert [call(api, word) for word in (words[2], words[-1], bobs)] == [200] * 3
    assert 0 < redis.ttl(places) <= 7 * 86_400

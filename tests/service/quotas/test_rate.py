"""The rate of calls is the generic cell rate algorithm's, however many processes count it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api_schemas.usage import calls_key
from service.quotas.rate import Rate, RateLimiter
from tests.poison import Poison, change_type, spoil

KEY = "0123456789ab"
WINDOW_S = 60.0
CLOSE_S = 0.25  # of two times, of which one is the server's
T = TypeVar("T")


def ask(url: str, calls: Callable[[RateLimiter], Coroutine[None, None, T]]) -> T:
    async def run() -> T:
        async with AsyncRedis.from_url(url) as client:
            return await calls(RateLimiter(client))

    return asyncio.run(run())


def let_pass(redis: Redis, seconds: float) -> None:
    """All that is stored is a time, so that is what moves."""
    if redis.exists(calls_key(KEY)):
        redis.incrby(calls_key(KEY), -round(seconds * 1e6))


@given(
    st.sampled_from((1, 2, 7, 60)),
    st.lists(st.sampled_from((0.0, 0.0, 0.0, 0.4, 1.0, 8.0, 29.0, 61.0)), max_size=40),
)
@settings(max_examples=25, deadline=None)
def test_calls_are_let_through_by_the_published_rule(valkey: str, limit: int, gaps_s: list[float]) -> None:
    """ITU-T I.371, annex A: a cell conforms unless it comes before TAT - L; then TAT = max(t, TAT) + I."""
    increment_s = WINDOW_S / limit
    tolerance_s = WINDOW_S - increment_s

    async def call(limiter: RateLimiter) -> None:
        now_s, arrival_s = 0.0, 0.0
        for gap_s in gaps_s:
            let_pass(redis, gap_s)
            now_s += gap_s
            rate = await limiter.call(KEY, limit)
            early_s = arrival_s - tolerance_s - now_s
            if abs(early_s) > CLOSE_S:
                assert rate.allowed == (early_s <= 0)
            if rate.allowed:
                arrival_s = max(now_s, arrival_s) + increment_s
            assert rate.remaining == pytest.approx(
                (now_s + WINDOW_S - arrival_s) / increment_s, abs=1 + CLOSE_S / increment_s
            )
            assert 0 <= rate.remaining < limit

    with Redis.from_url(valkey) as redis:
        redis.delete(calls_key(KEY))
        ask(valkey, call)


@given(st.integers(1, 50), st.integers(0, 60_000_000))
def test_what_is_told_is_whole_and_true(limit: int, ahead_us: int) -> None:
    """After `wait_s` there is one call more than `remaining`, and a second before there is not."""
    rate = Rate(limit, True, ahead_us)
    later = Rate(limit, True, max(0, ahead_us - rate.wait_s * 1_000_000))
    sooner = Rate(limit, True, max(0, ahead_us - (rate.wait_s - 1) * 1_000_000))
    assert 0 <= rate.remaining <= limit
    assert later.remaining >= min(limit, rate.remaining + 1)
    assert rate.wait_s == 1 or sooner.remaining <= rate.remaining


def test_of_many_calls_at_once_as_many_pass_as_may(valkey: str) -> None:
    """From two processes, which know nothing of each other."""

    async def call(limiter: RateLimiter) -> list[Rate]:
        async with AsyncRedis.from_url(valkey) as client:
            other = RateLimiter(client)
            return await asyncio.gather(*(each.call(KEY, 12) for each in [limiter, other] * 30))

    rates = ask(valkey, call)
    assert sum(rate.allowed for rate in rates) == 12
    assert sorted(rate.remaining for rate in rates if rate.allowed) == list(range(12))


def test_the_refused_may_call_when_they_were_told(valkey: str, redis: Redis) -> None:
    async def call(limiter: RateLimiter) -> None:
        for _ in range(7):
            assert (await limiter.call(KEY, 7)).allowed
        refused = await limiter.call(KEY, 7)
        assert (refused.allowed, refused.remaining) == (False, 0)
        let_pass(redis, refused.wait_s - 1)
        assert not (await limiter.call(KEY, 7)).allowed
        let_pass(redis, 1)
        assert (await limiter.call(KEY, 7)).allowed

    ask(valkey, call)


def test_a_key_that_rests_leaves_nothing(valkey: str, redis: Redis) -> None:
    ask(valkey, lambda limiter: limiter.call(KEY, 1))
    assert 55_000 < redis.pttl(calls_key(KEY)) <= 60_000


@pytest.mark.parametrize("poison", [spoil, change_type])
def test_garbage_refuses_nobody(valkey: str, redis: Redis, poison: Poison) -> None:
    ask(valkey, lambda limiter: limiter.call(KEY, 5))
    poison(redis, calls_key(KEY).encode())
    assert ask(valkey, lambda limiter: limiter.call(KEY, 5)).allowed
    redis.set(calls_key(KEY), 9 * 10**18)  # by a clock that was set back since
    assert ask(valkey, lambda limiter: limiter.call(KEY, 5)).wait_s <= WINDOW_S

"""The schedule that Standard Webhooks recommends, and that its first implementations keep."""

from datetime import timedelta

import pytest

from service.webhooks.schedule import find_delay_s

PUBLISHED = [
    timedelta(0), timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=2),
    timedelta(hours=5), timedelta(hours=10),
]  # fmt: skip


def test_attempts_come_as_published_and_then_no_more() -> None:
    delays = [find_delay_s(tries, 0.0) for tries in range(len(PUBLISHED))]
    assert delays == [each.total_seconds() for each in PUBLISHED]
    assert find_delay_s(len(PUBLISHED), 0.0) is None


@pytest.mark.parametrize("tries", range(1, len(PUBLISHED)))
def test_chance_only_adds_up_to_a_tenth(tries: int) -> None:
    base_s = PUBLISHED[tries].total_seconds()
    delays = [find_delay_s(tries, chance / 10) for chance in range(11)]
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (base_s, pytest.approx(1.1 * base_s))

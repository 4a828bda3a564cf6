"""What an operator writes is the quota, or is refused in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_schemas.keys import Quota
from api_schemas.quota_text import read_quota, write_quota

counts = st.none() | st.integers(1, 10**15 - 1)
quotas = st.builds(
    Quota,
    calls_per_minute=counts,
    concurrent_jobs=counts,
    queued_jobs=counts,
    megapixel_steps_per_day=st.none() | st.integers(1, 10**12).map(lambda thousandths: thousandths / 1000),
    store_bytes=counts,
)


def test_the_example_is_read() -> None:
    text = "calls=600/min,concurrent=2,queued=100,megapixel_steps=5000/day,store=50GB"
    assert read_quota(text) == Quota(
        calls_per_minute=600,
        concurrent_jobs=2,
        queued_jobs=100,
        megapixel_steps_per_day=5000,
        store_bytes=50 * 10**9,
    )


@given(quotas)
def test_what_is_written_is_read_again(quota: Quota) -> None:
    assert read_quota(write_quota(quota)) == quota


@pytest.mark.parametrize(
    "size", ["50GB", "20GiB", "1500KB", "1TiB", "1001B", "999999999999999B", "98765432123456KiB"]
)
def test_sizes_are_written_as_they_were_given(size: str) -> None:
    assert write_quota(read_quota(f"store={size}")) == f"store={size}"


@pytest.mark.parametrize(
    ("size", "expected"),
    [("1", 1), ("7B", 7), ("1.5 kb", 1500), ("2MB", 2 * 10**6), ("3GiB", 3 << 30), ("0.5TiB", 1 << 39)],
)
def test_bytes_have_units(size: str, expected: int) -> None:
    assert read_quota(f" store = {size} ").store_bytes == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("calls=600", "600/min"),
        ("calls=600/hour", "600/min"),
        ("calls=0/min", "above 0"),
        ("calls=1.5/min", "600/min"),
        ("concurrent=-1", "above 0"),
        ("queued=many", "as in 100"),
        ("queued", "as in 100"),
        ("megapixel_steps=5000", "5000/day"),
        ("megapixel_steps=nan/day", "5000/day"),
        ("store=50XB", "50GB"),
        ("store=0.1B", "above 0"),
        ("store=" + "9" * 400, "50GB"),
        ("store=٥", "50GB"),
        ("disk=5GB", "known are calls, concurrent, queued, megapixel_steps, store"),
        ("calls=1/min,calls=2/min", "twice"),
    ],
)
def test_a_refusal_names_the_part_and_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as refused:
        read_quota(text)
    assert said in str(refused.value)
    assert text.rpartition(",")[2] in str(refused.value)
    assert "\n" not in str(refused.value)


parts = st.sampled_from(("calls", "store", "=", "/min", ",", "5", "0", "GB", " ", "٥", "\n"))


@given(st.text() | st.lists(parts, max_size=12).map("".join))
def test_any_text_is_a_quota_or_refused(text: str) -> None:
    try:
        quota = read_quota(text)
    except ValueError:
        return
    assert read_quota(write_quota(quota)) == quota

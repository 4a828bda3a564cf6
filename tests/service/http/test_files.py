"""Ranges of bytes, against slicing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RangeNotSatisfiableError
from service.http.files import parse_range

sizes = st.integers(1, 10_000)
places = st.integers(0, 12_000)


@given(sizes, places, st.integers(0, 12_000))
def test_a_closed_range_is_that_slice(size: int, start: int, length: int) -> None:
    header = f"bytes={start}-{start + length}"
    if start >= size:
        with pytest.raises(RangeNotSatisfiableError):
            parse_range(header, size)
        return
    whole = range(size)
    found = parse_range(header, size)
    assert found is not None
    assert whole[slice(*found)] == whole[start : start + length + 1]


@given(sizes, places)
def test_open_and_suffix_ranges_meet_the_end(size: int, number: int) -> None:
    if number < size:
        assert parse_range(f"bytes={number}-", size) == (number, size)
    if number:
        assert parse_range(f"bytes=-{number}", size) == (max(0, size - number), size)


@given(st.text(max_size=30))
def test_no_header_breaks_anything(header: str) -> None:
    try:
        found = parse_range(header, 100)
    except RangeNotSatisfiableError:
        return
    assert found is None or 0 <= found[0] < found[1] <= 100


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "lines=0-1", "bytes=5-2", "bytes=-", "bytes=a-b", ""])
def test_what_is_no_single_range_is_ignored(header: str) -> None:
    assert parse_range(header, 100) is None


def test_an_empty_suffix_cannot_be_had() -> None:
    with pytest.raises(RangeNotSatisfiableError):
        parse_range("bytes=-0", 100)

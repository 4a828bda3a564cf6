"""Ids of Redis streams, `milliseconds-counter`, as clients hand them back."""

import re
from typing import Final

START: Final = "0-0"
_FORM = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
_LARGEST = 2**64 - 1


def parse(text: str) -> tuple[int, int] | None:
    """The two numbers, in the order in which ids grow; None if this is no id."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    numbers = int(match[1]), int(match[2])
    return numbers if max(numbers) <= _LARGEST else None


def order(seq: str) -> tuple[int, int]:
    """Sort key of an id that Redis made; "" comes before all."""
    return parse(seq) or (0, 0)


def before(seq: str) -> str:
    """The largest id that is smaller."""
    milliseconds, counter = order(seq)
    if counter:
        return f"{milliseconds}-{counter - 1}"
    return f"{milliseconds - 1}-{_LARGEST}" if milliseconds else START

"""The Range header (RFC 9110 §14), for one range of bytes."""

import re

from service.errors import RangeNotSatisfiableError

_FORM = re.compile(r"bytes=\s*([0-9]{0,19})-([0-9]{0,19})\s*")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, exclusive end), or None where the whole file is to be sent.

    What is no single range of bytes is ignored, as the RFC allows.

    Raises:
        RangeNotSatisfiableError: the range begins after the end.
    """
    match = _FORM.fullmatch(header or "")
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return _suffix(int(last), size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiableError(size)
    return start, min(int(last) + 1, size) if last else size


def _suffix(length: int, size: int) -> tuple[int, int]:
    if length == 0 or size == 0:
        raise RangeNotSatisfiableError(size)
    return max(0, size - length), size

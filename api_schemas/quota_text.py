"""Quotas as an operator writes them: `calls=600/min,concurrent=2,queued=100,megapixel_steps=5000/day,store=50GB`."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from api_schemas.keys import Quota

_WHOLE: Final = r"(\d{1,15})"
_NUMBER: Final = r"(\d{1,15}(?:\.\d{1,15})?)"
# The largest first.
_BYTES: Final[Mapping[str, int]] = {
    "TiB": 2**40, "TB": 10**12, "GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6,
    "KiB": 2**10, "KB": 10**3, "B": 1,
}  # fmt: skip
# name -> (field of Quota, form of its value, what that form is called)
_FORMS: Final[Mapping[str, tuple[str, str, str]]] = {
    "calls": ("calls_per_minute", rf"{_WHOLE}/min", "calls a minute, as in 600/min"),
    "concurrent": ("concurrent_jobs", _WHOLE, "jobs that run at once, as in 2"),
    "queued": ("queued_jobs", _WHOLE, "jobs that wait, as in 100"),
    "megapixel_steps": (
        "megapixel_steps_per_day",
        rf"{_NUMBER}/day",
        "megapixel-steps a day, as in 5000/day",
    ),
    "store": ("store_bytes", rf"{_NUMBER} ?([A-Za-z]*)", "bytes, as in 50GB or 20GiB"),
}


def read_quota(text: str) -> Quota:
    """What `--quota` says; what it does not name is unlimited, and so is all of an empty text.

    Raises:
        ValueError: names the part that is none of a quota, and what is allowed.
    """
    limits: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        field, value = _read_part(part)
        if field in limits:
            raise ValueError(f"{part!r}: this limit is given twice")
        limits[field] = value
    return Quota.model_validate(limits)


def write_quota(quota: Quota) -> str:
    """A text from which `read_quota` makes the same quota."""
    values = quota.model_dump(exclude_none=True)
    told = {name: values[field] for name, (field, *_) in _FORMS.items() if field in values}
    return ",".join(f"{name}={_write_value(name, value)}" for name, value in told.items())


def _read_part(part: str) -> tuple[str, float]:
    name, _, value = (word.strip() for word in part.partition("="))
    if name not in _FORMS:
        raise ValueError(f"{part!r}: no such limit; known are {', '.join(_FORMS)}, as in calls=600/min")
    field, form, meaning = _FORMS[name]
    match = re.fullmatch(form, value, re.ASCII)
    number = _count(match) if match else None
    if not number:
        raise ValueError(f"{part!r}: allowed for {name} is a number above 0 of {meaning}")
    return field, number


def _count(match: re.Match[str]) -> float | None:
    number, *unit = match.groups()
    if not unit:
        return float(number) if "." in number else int(number)
    factors = {name.upper(): factor for name, factor in _BYTES.items()} | {"": 1}
    factor = factors.get(unit[0].upper())
    return None if factor is None else int(Decimal(number) * factor)


def _write_value(name: str, value: float) -> str:
    if name == "store":
        return _write_bytes(int(value))
    endings = {"calls": "/min", "megapixel_steps": "/day"}
    number = f"{value:.15g}" if isinstance(value, float) else str(value)
    return f"{number}{endings.get(name, '')}"


def _write_bytes(size: int) -> str:
    """In the largest unit of which it is a whole number."""
    unit, factor = next((unit, factor) for unit, factor in _BYTES.items() if size % factor == 0)
    return f"{size // factor}{unit}"

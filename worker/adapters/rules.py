"""What a field of a configuration has to be, and how that is told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import cast

Config = Mapping[str, object]
Configs = Mapping[str, Config]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a configuration's field has to be.

    Args:
        allowed: the same in words, which may depend on the configurations of all parts.
        fits: (its value, the configurations of all parts) -> whether it is that.
    """

    part: str
    field: str
    allowed: str | Callable[[Configs], str]
    fits: Callable[[object, Configs], bool]

    def explain(self, configs: Configs) -> str:
        allowed = self.allowed if isinstance(self.allowed, str) else self.allowed(configs)
        value = configs[self.part][self.field]
        return f"{self.part}/config.json: {self.field} is {value!r}; allowed: {allowed}"


def one_of(part: str, field: str, *values: object) -> Rule:
    return Rule(part, field, ", ".join(map(repr, values)), lambda value, _: value in values)


def number(part: str, field: str) -> Rule:
    return Rule(part, field, "a number", lambda value, _: is_number(value))


def divisor(part: str, field: str) -> Rule:
    return Rule(part, field, "a number other than 0", lambda value, _: is_number(value) and value != 0)


def size(part: str, field: str) -> Rule:
    return Rule(part, field, "a whole number from 1", lambda value, _: is_size(value))


def as_many(part: str, field: str, as_field: str, more: int = 0) -> Rule:
    """Levels: an autoencoder enlarges as often as it has them, and a pipeline counts one list only."""
    return Rule(
        part, field, f"as many entries as {as_field} has" + (f", and {more}" if more else ""),
        lambda value, configs: count_entries(value) == count_entries(configs[part][as_field]) + more,
    )  # fmt: skip


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def is_size(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def are_sizes(value: object, count: int) -> bool:
    return count_entries(value) == count and all(map(is_size, list_entries(value)))


def are_numbers(value: object, count: object) -> bool:
    return count_entries(value) == count and all(map(is_number, list_entries(value)))


def to_int(value: object) -> int:
    assert isinstance(value, int)
    return value


def count_entries(value: object) -> int:
    return len(cast(Sequence[object], value)) if isinstance(value, list | tuple) else -1


def list_entries(value: object) -> list[int]:
    return list(cast(Sequence[int], value)) if isinstance(value, list | tuple) else []

"""Text or NaN where a network's configuration has to have numbers: diffusers fails on it later, or not at all."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import cast, get_args

import diffusers

from api_schemas.model_files import UPSCALER
from worker.adapters.errors import ModelFolderError
from worker.adapters.model_index import read_index, read_object

_NUMBERS = {int, float, bool, NoneType, Ellipsis}


def check_numbers(folder: Path) -> None:
    """What diffusers' classes declare as numbers, or lists of them, holds numbers.

    Raises:
        ModelFolderError: names the file, the first such field and its value.
    """
    for part in sorted({*read_index(folder).parts, UPSCALER}):
        for name in ("config.json", "scheduler_config.json"):
            _check(_read(folder / part / name), f"{part}/{name}")


def _read(path: Path) -> Mapping[str, object]:
    """Nothing of a file that is missing or damaged: the loader, which comes next, says so."""
    try:
        return read_object(path) if path.is_file() else {}
    except ModelFolderError:
        return {}


def _check(config: Mapping[str, object], shown: str) -> None:
    kind: type | None = getattr(diffusers, str(config.get("_class_name")), None)
    for field in _find_numeric(kind) if kind is not None else ():
        if not _is_free_of_text(config.get(field)):
            raise ModelFolderError(
                f"{shown}: {field} is {config[field]!r}; allowed: numbers, as {config['_class_name']} takes them"
            )


def _find_numeric(kind: type) -> Iterator[str]:
    for name, parameter in inspect.signature(kind.__init__, eval_str=True).parameters.items():
        if set(_list_leaves(parameter.annotation)) <= _NUMBERS:
            yield name


def _list_leaves(annotation: object) -> Iterator[object]:
    """`int | tuple[int, ...] | None` -> int, int, Ellipsis, None's type."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _list_leaves(argument)


def _is_free_of_text(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_free_of_text(each) for each in cast(Sequence[object], value))
    return not (isinstance(value, str) or (isinstance(value, float) and math.isnan(value)))

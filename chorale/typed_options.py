"""Options of a type that says what is allowed, and errors by the options that a value was given by."""

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from typer import BadParameter, Option

from api_schemas.errors import FieldError
from api_schemas.generation import PicturePart
from api_schemas.refused_values import Form, tell
from chorale.errors import ChoraleError, InvalidRequestError

_METAVARS: Final = {"integer": "INTEGER", "number": "NUMBER"}
# Where they are not called as their fields.
_OPTIONS: Final = {
    "prompt": "prompt",
    "negative_prompt": "--negative",
    "width_px": "--size, width",
    "height_px": "--size, height",
    "width_px and height_px": "--size",
    "guidance_scale": "--guidance",
    "advanced.guidance_interval": "--guidance-interval",
    "loras": "--lora",
    "control": "--control",
    "control.scale": "--control-scale",
    "ip_adapter": "--ip-adapter",
    "ip_adapter.scale": "--ip-adapter-scale",
    "source": "--source",
    "source.fit": "--fit",
    "source_image": "--source",
    "mask": "--mask",
    "mask_image": "--mask",
    "style": "--style-prompt",
    "style.strength": "--style-strength",
    "style.style_image": "--style-image",
    "output_format": "--output",
    "start_within_s": "--start-within",
    "finish_within_s": "--finish-within",
    "region": "--region",
    "region.feather_px": "--feather",
}


class OptionError(ChoraleError):
    """An invalid value on the command line."""


class RefusedOptionError(ChoraleError):
    """A value on the command line that the server has refused."""


def field_of(model: type[BaseModel], name: str) -> Any:
    """The type of a field, with its limits."""
    field = model.model_fields[name]
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def typed(kind: Any, *names: str, help: str, show_default: bool | str = True) -> Any:
    """An option whose errors name the value that was given and what is allowed.

    Args:
        kind: a number or a choice of words, with its limits.
    """
    schema = TypeAdapter(kind).json_schema()
    schema = schema.get("anyOf", [schema])[0]
    words = [schema["const"]] if "const" in schema else schema.get("enum", [])
    metavar = "|".join(map(str, words)) or _METAVARS[schema["type"]]
    return Option(*names, parser=_parser_of(kind), metavar=metavar, help=help, show_default=show_default)


def _parser_of(kind: Any) -> Callable[[object], object]:
    adapter = TypeAdapter(kind)
    words = {str(word): word for word in get_args(kind)} if get_origin(kind) is Literal else {}

    def parse(value: object) -> object:
        try:
            return adapter.validate_python(words.get(str(value), value))
        except ValidationError as error:
            schema = adapter.json_schema()
            refused = Form(schema, schema).explain(error.errors()[0], ())
            raise BadParameter(f"{value!r}; allowed is {refused.allowed}") from error

    return parse


def tell_options(errors: Iterable[FieldError], pictures: Mapping[PicturePart, Path] | None = None) -> str:
    """Each value by its option, with what is allowed.

    Args:
        pictures: whose files are told in place of what is in them.
    """
    files = {part: str(path) for part, path in (pictures or {}).items()}
    return "; ".join(tell(_rename(each, files.get(each.field, each.value))) for each in errors)


def _rename(error: FieldError, value: str) -> FieldError:
    """An object was given by several options, or in another form."""
    changes = {
        "field": _name(error.field),
        "value": "" if value.startswith("{") else value,
        "allowed": re.sub("`([a-z_]+)`", lambda name: _name(name[1]), error.allowed),
    }
    return error.model_copy(update=changes)


@contextmanager
def naming_options(pictures: Mapping[PicturePart, Path] | None = None) -> Generator[None]:
    """What the server refuses within is told by the options that it was given by.

    Raises:
        RefusedOptionError: a value is refused.
    """
    try:
        yield
    except InvalidRequestError as error:
        raise RefusedOptionError(tell_options(error.problem.errors, pictures) or str(error)) from error


def _name(field: str) -> str:
    """The option of the field, or of what it is in; else the field."""
    names = field.split(".")
    outer = (".".join(names[:count]) for count in range(len(names), 0, -1))
    known = next((_OPTIONS[name] for name in outer if name in _OPTIONS), None)
    return known or (field if len(names) > 1 else f"--{field.removesuffix('_px').replace('_', '-')}")

"""Options of a type that says what is allowed, and errors by the options that a value was given by."""

import json
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from typer import BadParameter, Option, TyperException

from api_schemas.errors import FieldError
from api_schemas.refused_values import Form, tell
from chorale.errors import ChoraleError, InvalidRequestError

_LONGEST: Final = 200
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
    "style.prompt": "--style-prompt",
    "style.strength": "--style-strength",
    "style.style_image": "--style-image",
    "output_format": "--output",
    "start_within_s": "--start-within",
    "finish_within_s": "--finish-within",
    "region": "--region",
    "region.feather_px": "--feather",
}

# Of a shape, a region or a LoRA, which are one text each.
_WITHIN: Final = ("left_px", "top_px", "width_px", "height_px", "prompt", "name", "weight")
Given = Mapping[str, str | Path | None]
"""What was typed for a field or a part of a request, where it is sent in another form; if it is for several options, behind
the name of one."""


class OptionError(ChoraleError):
    """An invalid value on the command line."""


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
            raise BadParameter(f"{shown(value)}: {refused.allowed}") from error

    return parse


def tell_options(errors: Iterable[FieldError], given: Given | None = None) -> str:
    """Each value by its option, with what is allowed.

    Args:
        given: told in place of what was sent.
    """
    told = (tell(_as_typed(_rename(each), given or {})) for each in errors)
    return "; ".join(dict.fromkeys(told))


def _rename(error: FieldError) -> FieldError:
    """An object was given by several options."""
    changes = {
        "value": "" if error.value.startswith("{") else error.value,
        "allowed": re.sub("`([a-z_.]+)`", lambda name: _name(name[1]), error.allowed),
    }
    return error.model_copy(update=changes)


def _as_typed(error: FieldError, given: Given) -> FieldError:
    """By its option, and where that is one text for several fields, by that text and which of them."""
    whole = next((name for name in _list_outer(error.field) if name in given or name in _OPTIONS), "")
    text = given.get(whole)
    if text is None:
        return error.model_copy(update={"field": _name(error.field)})
    inner = error.field.rpartition(".")[2] if whole != error.field else ""
    which = f"{inner.removesuffix('_px')}: " if inner in _WITHIN else ""
    named, value = ("", str(text)) if str(text).startswith("--") else (_name(whole), shown(text))
    return error.model_copy(update={"field": named, "value": value, "allowed": f"{which}{error.allowed}"})


def shown(value: object) -> str:
    """A value as a message has it: blanks in quotes, and not all of what is long."""
    text = str(value)[:_LONGEST]
    return text if text.strip() else json.dumps(text)


def tell_usage(error: TyperException) -> str:
    """What the library of the command line refuses: a value as all others, the rest in its words."""
    if isinstance(error, BadParameter) and error.param is not None and error.message:
        return f"{error.param.opts[-1]} {error.message}"
    return error.format_message()


@contextmanager
def naming_options(given: Given | None = None) -> Generator[None]:
    """What the server refuses within is told by the options that it was given by.

    Args:
        given: as for `tell_options`.

    Raises:
        OptionError: a value is refused.
    """
    try:
        yield
    except InvalidRequestError as error:
        raise OptionError(tell_options(error.problem.errors, given) or str(error)) from error


def _name(field: str) -> str:
    """The option of the field, or of what it is in; else the field."""
    known = next((_OPTIONS[name] for name in _list_outer(field) if name in _OPTIONS), None)
    return known or (field if "." in field else f"--{field.removesuffix('_px').replace('_', '-')}")


def _list_outer(field: str) -> list[str]:
    """The field, and those that it is in."""
    names = field.split(".")
    return [".".join(names[:count]) for count in range(len(names), 0, -1)]

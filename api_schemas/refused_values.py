"""What pydantic refuses, told as field, value and what is allowed, which follows from the JSON schema of the field."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

from pydantic import BaseModel, ValidationError

from api_schemas.errors import FieldError
from api_schemas.fields import REFUSED_FIELD
from api_schemas.keys import hide_secrets
from api_schemas.webhook import hide_webhook_secrets

REQUIRED: Final = "required"
UNKNOWN_FIELD: Final = "no such field"
_LONGEST: Final = 200
_OWN_WORDS: Final = ("value_error", REFUSED_FIELD)
_NO_UNICODE: Final = "text in Unicode, without lone surrogates"
Schema = Mapping[str, Any]
Failure = Mapping[str, Any]
"""One of `ValidationError.errors()`; FastAPI has them as plain dicts."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a value must be.

    Args:
        schema: JSON schema of the whole value.
        document: that the references in it are looked up in.
    """

    schema: Schema
    document: Schema

    def explain(self, failure: Failure, location: Sequence[str | int]) -> FieldError:
        """
        Args:
            location: of the refused value within the whole one.
        """
        if location and location[-1] == "[key]":  # as pydantic has it, of the name of a field
            named = self.explain(failure, location[:-1])
            return named.model_copy(update={"allowed": f"{_clean(failure)} as its name"})
        missing = failure["type"] == "missing"
        value = None if missing else hide_webhook_secrets(failure.get("input"), list(map(str, location)))
        return FieldError(
            field=_printable(".".join(map(str, location)))[:_LONGEST],
            value=_write(value),
            allowed=_printable(self._allow(failure, location)),
        )

    def _allow(self, failure: Failure, location: Sequence[str | int]) -> str:
        if failure["type"] == "json_invalid":
            return f"JSON; {failure['ctx']['error']}"
        if failure["type"] in _OWN_WORDS:
            return str(failure["msg"]).removeprefix("Value error, ")  # pydantic's, before our own
        if failure["type"] == "string_unicode":
            return _NO_UNICODE
        if failure["type"] == "extra_forbidden":
            return f"{UNKNOWN_FIELD}; known are {', '.join(self._list_known(location[:-1]))}"
        described = " or ".join(filter(None, map(self._describe, self._find(self.schema, location))))
        described = described or _clean(failure)
        return f"{REQUIRED}, {described}" if failure["type"] == "missing" else described

    def _list_known(self, location: Sequence[str | int]) -> list[str]:
        """The fields of an object; those that are always refused go without saying."""
        objects = self._find(self.schema, location)
        fields = {name: field for each in objects for name, field in each.get("properties", {}).items()}
        return [name for name, field in fields.items() if field.get("type") != "null"]

    def _find(self, schema: Schema, location: Sequence[str | int]) -> list[Schema]:
        """Every schema that a value at that place may have."""
        found = list(self._choices(schema))
        for part in location:
            found = [
                choice for each in found for inner in _enter(each, part) for choice in self._choices(inner)
            ]
        return found

    def _choices(self, schema: Schema) -> Iterator[Schema]:
        """The alternatives, without null: that is as if the field were left out."""
        if "$ref" in schema:
            target: Schema = self.document
            for name in schema["$ref"].removeprefix("#/").split("/"):
                target = target[name]
            yield from self._choices(target)
        elif alternatives := schema.get("anyOf") or schema.get("oneOf"):
            shared = {name: schema[name] for name in ("description",) if name in schema}
            for each in alternatives:
                yield from self._choices(shared | each)
        elif schema.get("type") != "null":
            yield schema

    def _describe(self, schema: Schema) -> str:
        """Empty where everything is allowed."""
        if "enum" in schema or "const" in schema:
            return _join([str(each) for each in schema.get("enum", [schema.get("const")])])
        match schema.get("type"):
            case "integer":
                return f"a whole number{_describe_range(schema)}"
            case "number":
                return f"a number{_describe_range(schema)}"
            case "boolean":
                return "true or false"
            case "string":
                return _describe_text(schema)
            case "array":
                return self._describe_list(schema)
            case "object":
                fields = ", ".join(schema.get("properties", {}))
                return f"an object with the fields {fields}" if fields else "an object"
            case _:
                return ""

    def _describe_list(self, schema: Schema) -> str:
        first = cast(Sequence[Schema], schema.get("prefixItems") or [schema.get("items") or {}])[0]
        items = " or ".join(filter(None, map(self._describe, self._choices(first))))
        count = _count(schema.get("minItems"), schema.get("maxItems"), "item")
        if not items:
            return f"a list{count}"
        return f"a list{count}, each {items}" if count else f"a list of items, each {items}"


@cache
def form_of(model: type[BaseModel]) -> Form:
    """What a model accepts."""
    schema = model.model_json_schema()
    return Form(schema, schema)


def list_refused(error: ValidationError, model: type[BaseModel]) -> list[FieldError]:
    """Every value that this model has refused."""
    form = form_of(model)
    return [form.explain(each, each["loc"]) for each in error.errors(include_url=False)]


def tell_refused(error: ValidationError, model: type[BaseModel]) -> str:
    """The same in one line."""
    return "; ".join(map(tell, list_refused(error, model)))


def tell(refused: FieldError) -> str:
    """In a line for people; what is missing has no value."""
    given = "" if refused.allowed.startswith(REQUIRED) else refused.value
    return f"{' '.join(filter(None, (refused.field, given)))}: {refused.allowed}"


def _clean(failure: Failure) -> str:
    """Pydantic's words, where the schema has none."""
    return (
        str(failure["msg"]).removeprefix("Input should be ").partition(", unable")[0].replace("a valid", "a")
    )


def _enter(schema: Schema, part: str | int) -> Iterator[Schema]:
    """The schema of one field, or one item."""
    fields, fixed = schema.get("properties", {}), schema.get("prefixItems", [])
    if isinstance(part, int) and part < len(fixed):
        yield fixed[part]
    elif isinstance(part, int) and isinstance(schema.get("items"), Mapping):
        yield schema["items"]
    elif part in fields:
        yield fields[part]
    elif isinstance(schema.get("additionalProperties"), Mapping):
        yield schema["additionalProperties"]


def _describe_range(schema: Schema) -> str:
    least, most, above = (schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    if most is None:
        bounds = {" of at least": least, " above": above}
    elif least is None and above is None:
        bounds = {" of at most": most}
    else:
        bounds = {" from": least, " above": above, " to" if above is None else " and up to": most}
    return "".join(f"{word} {_show(bound)}" for word, bound in bounds.items() if bound is not None)


def _describe_text(schema: Schema) -> str:
    described = str(schema.get("description", "")).partition(". ")[0].rstrip(".")
    if described and ("pattern" in schema or schema.get("format") == "password"):
        return described
    if "pattern" in schema:
        return f"text that matches {schema['pattern']}"
    return f"text{_count(schema.get('minLength'), schema.get('maxLength'), 'character')}"


def _count(least: int | None, most: int | None, noun: str) -> str:
    """` of 1 to 8 items`; empty where any number will do."""
    plural = noun if (least if most is None else most) == 1 else f"{noun}s"
    if most is None:
        return f" of at least {least} {plural}" if least else ""
    if least == most:
        return f" of {most} {plural}"
    return f" of {least} to {most} {plural}" if least else f" of at most {most} {plural}"


def _join(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _show(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _write(value: object) -> str:
    """What was sent but for secrets, as ASCII JSON: lone surrogates could not be encoded otherwise."""
    try:
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        return hide_secrets(json.dumps(value))[:_LONGEST]
    except (TypeError, ValueError, RecursionError):
        return hide_secrets(ascii(value))[:_LONGEST]


def _printable(text: str) -> str:
    return hide_secrets(text.encode("utf-8", "backslashreplace").decode())

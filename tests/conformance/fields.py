"""Tables of fields: for each the changed values that are tried, and what is known to come of them."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import diffusers
import transformers

Outcome = Literal["honoured", "inert", "refused", "unusable"]
"""Of one changed value, while all else stays.

honoured: diffusers' result changes, and ours is the same; inert: it does not change, nor does ours;
refused: diffusers takes it, we do not, and say so; unusable: diffusers fails, and we refuse.
"""


@dataclass(frozen=True, slots=True)
class Try:
    """One value; `why` is said of what is inert."""

    value: object
    outcome: Outcome
    why: str = ""


Fields = dict[str, tuple[Try, ...]]
"""Field -> what is tried. A field of a configuration in a configuration has a dot: `text_config.head_dim`."""


def honoured(*values: object) -> tuple[Try, ...]:
    return tuple(Try(value, "honoured") for value in values)


def inert(why: str, *values: object) -> tuple[Try, ...]:
    return tuple(Try(value, "inert", why) for value in values)


def refused(*values: object) -> tuple[Try, ...]:
    return tuple(Try(value, "refused") for value in values)


def unusable(*values: object) -> tuple[Try, ...]:
    return tuple(Try(value, "unusable") for value in values)


def find_fields(folder: Path, part: str) -> set[str]:
    """All that a part's saved configuration states and all that its class takes."""
    if part == "":
        return _index_fields(folder)
    library, name = json.loads((folder / "model_index.json").read_text())[part]
    stated = {field for path in (folder / part).glob("*.json") for field in _stated(path)}
    stated |= {path.name for path in (folder / part).glob("*.jinja")}
    return stated | (_signature(library, name) if "tokenizer" not in part else set())


def find_parts(folder: Path) -> set[str]:
    """That a folder's index names and that are there."""
    entries = json.loads((folder / "model_index.json").read_text())
    return {name for name, value in entries.items() if isinstance(value, list) and value[0] is not None}


def config_file(part: str, field: str) -> str:
    """Where a field of a part stands."""
    if part == "":
        return "model_index.json"
    if "tokenizer" in part:
        if field.endswith(".jinja"):
            return field
        return "tokenizer.json" if field.startswith("tokenizer.json/") else "tokenizer_config.json"
    return "scheduler_config.json" if part == "scheduler" else "config.json"


def _index_fields(folder: Path) -> set[str]:
    entries = json.loads((folder / "model_index.json").read_text())
    kind = getattr(diffusers, entries["_class_name"])
    parameters = inspect.signature(kind.__init__).parameters
    parts = {name for name, value in entries.items() if isinstance(value, list)}
    return ({*entries, *parameters} - parts - {"self"}) - {
        "_class_name",
        "_diffusers_version",
        "_name_or_path",
    }


def _stated(path: Path) -> set[str]:
    """Keys in dotted form; a part of a tokenizer's own file is named with the file."""
    entries = json.loads(path.read_text())
    if path.name.startswith("diffusion_pytorch_model") or path.name == "model.safetensors.index.json":
        return set()
    if path.name == "tokenizer.json":
        return {f"tokenizer.json/{key}" for key in entries}
    fields = set[str]()
    for key, value in entries.items():
        if isinstance(value, dict) and key.endswith("_config"):
            fields |= {f"{key}.{inner}" for inner in value}
        elif not key.startswith("_"):
            fields.add(key)
    return fields


def _signature(library: str, name: str) -> set[str]:
    kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
    if library == "transformers":
        return set(kind.config_class().to_dict()) - {"_name_or_path", "text_config", "vision_config"}
    return {
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    }

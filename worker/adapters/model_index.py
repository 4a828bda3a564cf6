"""What a folder's `model_index.json` says: the pipeline's class and the parts that it is made of."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from api_schemas.allow_list import JSON_OBJECT
from worker.adapters.errors import ModelFolderError

# Parts of Stable Diffusion that are never loaded: they judge finished pictures.
_LEFT_OUT = {"safety_checker", "feature_extractor"}


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """`kind` is the pipeline's class; each of `parts` is a folder beside the index."""

    kind: str
    parts: tuple[str, ...]


def read_index(folder: Path) -> ModelIndex:
    """
    Raises:
        ModelFolderError: there is none, or it names no pipeline.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelFolderError(f"{folder} is not a model folder: {path.name} is missing")
    entries = read_object(path)
    kind = entries.get("_class_name")
    if not isinstance(kind, str):
        raise ModelFolderError(
            f"{path}: _class_name is {kind!r}; allowed: the name of a pipeline of diffusers"
        )
    named = (name for name, value in entries.items() if isinstance(value, list) and value[:1] != [None])
    return ModelIndex(kind, tuple(name for name in named if name not in _LEFT_OUT))


def read_object(path: Path) -> dict[str, object]:
    """
    Raises:
        ModelFolderError: the file holds no JSON object.
    """
    try:
        return JSON_OBJECT.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelFolderError(f"{path}: {error.errors()[0]['msg']}") from error

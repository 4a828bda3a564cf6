"""A folder's index and JSON files, read with the adapters' own errors."""

from pathlib import Path

from api_schemas.model_files import Files, Folder, FolderError, ModelIndex, choose_model_files
from api_schemas.model_files import read_index as read_index_of
from worker.adapters.errors import ModelFolderError


def read_index(folder: Path) -> ModelIndex:
    """Read `model_index.json`.

    Raises:
        ModelFolderError: there is none, or it names no pipeline.
    """
    try:
        return read_index_of(Folder.on_disk(folder))
    except FolderError as error:
        raise ModelFolderError(str(error)) from error


def find_files(folder: Path) -> Files:
    """What is read of a folder: the name that a loader asks for -> the name that the file has.

    Raises:
        ModelFolderError: something is missing or not as it has to be.
    """
    try:
        return choose_model_files(Folder.on_disk(folder))
    except FolderError as error:
        raise ModelFolderError(str(error)) from error


def read_object(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        ModelFolderError: the file holds no JSON object.
    """
    try:
        return Folder(path.parent, frozenset()).read(path.name)
    except FolderError as error:
        raise ModelFolderError(str(error)) from error

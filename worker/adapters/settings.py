"""`chorale.json` as the worker reads it."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from api_schemas.catalog import Dtype
from api_schemas.folder_settings import FolderSettings, read_folder_settings
from api_schemas.model_files import FolderError
from worker.adapters.errors import ModelFolderError

_chosen: ContextVar[Dtype | None] = ContextVar("chosen", default=None)


@contextmanager
def overriding_dtype(dtype: Dtype | None) -> Generator[None]:
    """Within this context folders are read as if their `chorale.json` asked for this type; None: for what it does."""
    token = _chosen.set(dtype)
    try:
        yield
    finally:
        _chosen.reset(token)


def read_settings(folder: Path) -> FolderSettings:
    """Read `chorale.json`, if the folder has one; its type is the operator's, if that was chosen.

    Raises:
        ModelFolderError: a field is unknown, or of the wrong kind.
    """
    try:
        settings = read_folder_settings(folder)
    except FolderError as error:
        raise ModelFolderError(str(error)) from error
    dtype = _chosen.get()
    return settings if dtype is None else settings.model_copy(update={"dtype": dtype})

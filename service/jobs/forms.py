"""Reads a form; its files go to disk as they come."""

from pathlib import Path
from typing import Final

from fastapi import Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import InvalidFormError, UnavailableError
from service.images.received import open_scratch

_RETRY_AFTER_S: Final = 60
_MOST_FILES: Final = 30  # more than are ever valid, so that the part that is too much can be named
_MOST_FIELDS: Final = 4  # they are held in memory, and one is ever valid


async def read_form(
    request: Request, folder: Path, max_field_bytes: int, most_fields: int = _MOST_FIELDS
) -> FormData:
    """
    Args:
        folder: where the files are, without names.
        most_fields: that are no files.

    Raises:
        InvalidFormError: it is broken, or has too many parts.
        UnavailableError: the disk is full, or the folder cannot be written.
    """
    parser = _DiskParser(
        request.headers,
        request.stream(),
        max_files=_MOST_FILES,
        max_fields=most_fields,
        max_part_size=max_field_bytes,
    )
    parser.folder = folder
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise InvalidFormError(f"the form cannot be read: {error.message}") from error
    except OSError as error:
        why = f"pictures cannot be taken in: {error.strerror}"
        raise UnavailableError(why, retry_after_s=_RETRY_AFTER_S) from error


class _DiskParser(MultiPartParser):
    """Starlette's own keeps a megabyte of each file in memory, and the rest in the system's temporary folder.

    It also leaves out, without a word, what a form that was cut ends with.
    """

    folder: Path
    _is_whole = False

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._is_whole:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("it ends before its last boundary")
        return form

    def on_end(self) -> None:
        self._is_whole = True

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if (upload := self._current_part.file) is not None:
            upload.file.close()
            upload.file = open_scratch(self.folder)
            self._files_to_close_on_error.append(upload.file)  # pyright: ignore[reportArgumentType]

"""Files and folders that options name: what cannot be used is refused before anything is done."""

import os
import stat
from pathlib import Path
from typing import Any, Final

from typer import BadParameter, Option

from chorale.part_file import try_place
from chorale.typed_options import OptionError, shown

_FILE: Final = "a file that can be read"


def file_option(*names: str, help: str, show_default: bool | str = True) -> Any:
    """An option for a file that is read."""
    return Option(*names, parser=_read_file, metavar="FILE", help=help, show_default=show_default)


def require_file(path: Path | str, typed: str, allowed: str = _FILE) -> Path:
    """
    Args:
        typed: the option and its value.

    Raises:
        OptionError: it cannot be read.
    """
    if fault := _find_fault(path):
        raise OptionError(f"{typed}: {allowed}; {fault}")
    return Path(path)


def require_place(output: Path) -> Path:
    """
    Raises:
        OptionError: no file can be written there.
    """
    typed = f"--output {shown(output)}"
    try:
        if output.exists() and not output.is_file():
            raise OptionError(f"{typed}: a file to write; {_name_kind(output.stat().st_mode)}")
        try_place(output)
    except OSError as error:
        raise OptionError(f"{typed}: a file in a folder that can be written; {error.strerror}") from error
    return output


def read_folder(text: str) -> Path:
    """
    Raises:
        BadParameter: there is no folder, and none can be made.
    """
    try:
        is_folder = text and stat.S_ISDIR(os.stat(os.path.expanduser(text)).st_mode)
        fault = "" if is_folder else "this is none"
    except FileNotFoundError:
        fault = ""  # it is made
    except OSError as error:
        fault = error.strerror
    if fault:
        raise BadParameter(f"{shown(text)}: a folder, or where one can be made; {fault}")
    return Path(text)


def _read_file(text: str) -> Path:
    if fault := _find_fault(text):
        raise BadParameter(f"{shown(text)}: {_FILE}; {fault}")
    return Path(text)


def _find_fault(path: Path | str) -> str:
    """Why a file cannot be read; pipes and devices may have no end, and are not opened."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            return _name_kind(mode)
        open(path, "rb").close()
    except (OSError, ValueError) as error:  # ValueError: a NUL in a name of --regions
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ""


def _name_kind(mode: int) -> str:
    return "this is a folder" if stat.S_ISDIR(mode) else "this is no plain file"

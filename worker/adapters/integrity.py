"""A folder is trusted only after this: complete, no pickles, digests as stated."""

import hashlib
from pathlib import Path

from api_schemas.allow_list import AllowedModel, covered_files, refused_files
from worker.adapters.errors import DamagedModelError, ModelFolderError
from worker.adapters.model_index import read_index

_DIGESTS = "SHA256SUMS"


def check_folder(folder: Path) -> str:
    """Check a diffusers folder and answer its pipeline class.

    Raises:
        ModelFolderError: missing, without a sound model_index.json, incomplete, or holding pickled weights.
        DamagedModelError: a file is missing or does not have its digest in SHA256SUMS.
    """
    index = read_index(folder)
    if refused := refused_files(folder):
        raise ModelFolderError(
            f"{folder} holds what would run code when loaded, such as pickled weights ({', '.join(refused)}); only safetensors are loaded"
        )
    if missing := [part for part in index.parts if not (folder / part).is_dir()]:
        raise ModelFolderError(
            f"{folder} is incomplete: model_index.json names {', '.join(missing)}, and there is no such folder"
        )
    if (folder / _DIGESTS).is_file():
        _check_sums(folder)
    return index.kind


def _check_sums(folder: Path) -> None:
    for line in (folder / _DIGESTS).read_text().splitlines():
        expected, _, name = line.partition(" ")
        if not name:
            raise ModelFolderError(f"{folder / _DIGESTS}: {line!r} is not a digest and the name of a file")
        path = folder / name.lstrip(" *")
        _check_digest(path, expected, str(path))


def check_listed(name: str, entry: AllowedModel) -> None:
    """Check an entry of the allow-list. What is said may be read by clients, so it shows no folders.

    Raises:
        DamagedModelError: a file is missing, changed, or was not there when the entry was made.
    """
    for file, expected in entry.files.items():
        _check_digest(entry.root / file, expected, f"{name}: {file}")
    added = sorted(set(covered_files(entry.path)) - set(entry.files))
    if added:
        raise DamagedModelError(
            f"{name} holds files that are not on the allow-list: {', '.join(added)}; if they are meant, add it again"
        )


def _check_digest(path: Path, expected: str, shown: str) -> None:
    if not path.is_file():
        raise DamagedModelError(f"{shown} is missing; expected a file with SHA-256 {expected}")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise DamagedModelError(f"{shown} has SHA-256 {actual}, expected {expected}: damaged or changed")

"""A folder is trusted only after this: complete, no pickles, digests as stated."""

import hashlib
import json
from pathlib import Path

from worker.adapters.errors import DamagedModelError, ModelFolderError

_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack"}
_DIGESTS = "SHA256SUMS"


def check_folder(folder: Path) -> str:
    """Check a diffusers folder and answer its pipeline class.

    Raises:
        ModelFolderError: missing, without model_index.json, or holding pickled weights.
        DamagedModelError: a file is missing or does not have its digest in SHA256SUMS.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelFolderError(f"{folder} is not a model folder: {index.name} is missing")
    pickles = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in _PICKLES)
    if pickles:
        raise ModelFolderError(
            f"{folder} holds pickled weights ({', '.join(pickles)}); only safetensors are loaded"
        )
    if (folder / _DIGESTS).is_file():
        _check_digests(folder)
    return str(json.loads(index.read_text())["_class_name"])


def _check_digests(folder: Path) -> None:
    for line in (folder / _DIGESTS).read_text().splitlines():
        expected, name = line.split(maxsplit=1)
        path = folder / name.lstrip("*")
        if not path.is_file():
            raise DamagedModelError(f"{path} is missing; expected a file with SHA-256 {expected}")
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != expected:
            raise DamagedModelError(
                f"{path} has SHA-256 {actual}, expected {expected}: damaged or incomplete"
            )

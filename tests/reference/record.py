"""`python -m tests.reference.record NAME ...`: write the pictures of these cases again. Only where they are meant to change."""

import hashlib
import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import Tensor

from tests.reference.cases import list_cases

PICTURES, DIGESTS = (Path(__file__).parent / name for name in ("pictures.npz", "digests.json"))


def main() -> None:
    torch.set_num_threads(1)
    made = {case.name: case.make() for case in list_cases() if case.name in sys.argv[1:]}
    pictures = dict(np.load(PICTURES)) | {name: thin(picture) for name, picture in made.items()}
    np.savez_compressed(PICTURES, **pictures)
    known = json.loads(DIGESTS.read_text())
    digests = known.get(name_environment(), {}) | {name: digest(picture) for name, picture in made.items()}
    DIGESTS.write_text(json.dumps(known | {name_environment(): digests}, indent=1) + "\n")


def thin(picture: Tensor) -> np.ndarray:
    """Every fourth pixel, to keep the repository small."""
    return picture[::2, ::2].numpy().astype(np.uint8)


def digest(picture: Tensor) -> str:
    return hashlib.sha256(picture.numpy().astype(np.uint8).tobytes()).hexdigest()


def name_environment() -> str:
    """Where bytes are equal: other processors and versions choose other kernels."""
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    return f"{versions}, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    main()

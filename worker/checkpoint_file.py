"""One checkpoint as one safetensors file; what is no tensor lies in its header as JSON."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from worker.engine.denoise import Checkpoint
from worker.errors import CheckpointError


def write_checkpoint(path: Path, checkpoint: Checkpoint, engine_s: float) -> None:
    """Write atomically: at `path` there is a whole checkpoint or none."""
    state = {"step": checkpoint.step, "scalars": checkpoint.scalars, "engine_s": engine_s}
    partial = path.with_suffix(".partial")
    save_file(checkpoint.tensors, partial, metadata={"chorale": json.dumps(state)})
    os.replace(partial, path)


def read_checkpoint(path: Path) -> tuple[Checkpoint, float]:
    """Read a checkpoint and the seconds of engine time that went into it.

    Raises:
        CheckpointError: the file is damaged or not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["chorale"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(state["step"], tensors, state["scalars"]), state["engine_s"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error

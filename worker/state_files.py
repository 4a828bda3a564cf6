"""Checkpoints and kept final states as safetensors files with a checksum and a version."""

import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from api_schemas.catalog import Dtype
from worker.checksums import NO_CHECKSUM, verify_checksum, write_checksum
from worker.colors import ColorFix
from worker.engine.denoise import Checkpoint
from worker.engine.generate import FinalState
from worker.engine.scheduler import Scalars
from worker.errors import DamagedFileError

# To be raised when one of an earlier version would lead to another picture.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What an engine chose when it started, and a picture's last bits go by; None: not known.

    Args:
        dtype: that predictions are computed in.
        num_modules: so many tiles it predicts at once where the request leaves that open.
        decode_memory: bytes that decoding may hold.
    """

    dtype: Dtype | None = None
    num_modules: int | None = None
    decode_memory: int | None = None

    @property
    def memory(self) -> str | None:
        """What it makes of the memory that there is."""
        if self.num_modules is None or self.decode_memory is None:
            return None
        return f"num_modules {self.num_modules} and {self.decode_memory >> 20} MiB for decoding"


UNKNOWN_SETUP = EngineSetup()


def write_checkpoint(
    path: Path, checkpoint: Checkpoint, engine_s: float, setup: EngineSetup = UNKNOWN_SETUP
) -> None:
    """Write atomically: at `path` there is a whole checkpoint or none."""
    state: dict[str, object] = {
        "step": checkpoint.step,
        "scalars": checkpoint.scalars,
        "engine_s": engine_s,
        **asdict(setup),
    }
    partial = path.with_suffix(".partial")
    _write(partial, checkpoint.tensors, state)
    os.replace(partial, path)


def read_checkpoint(path: Path) -> tuple[Checkpoint, float]:
    """Read a checkpoint and the seconds of engine time that went into it.

    Raises:
        DamagedFileError: the file is damaged, not ours, or of another version.
    """
    tensors, state = _read(path)
    try:
        return Checkpoint(cast(int, state["step"]), tensors, cast(Scalars, state["scalars"])), cast(
            float, state["engine_s"]
        )
    except KeyError as error:
        raise DamagedFileError(f"{path.name} is no checkpoint: it has no {error}") from error


def read_setup(path: Path) -> EngineSetup:
    """Of the engine that wrote a checkpoint, as far as it tells.

    Raises:
        DamagedFileError: as `read_checkpoint`.
    """
    state = _read(path)[1]
    return EngineSetup(
        cast(Dtype | None, state.get("dtype")),
        cast(int | None, state.get("num_modules")),
        cast(int | None, state.get("decode_memory")),
    )


def write_final_state(path: Path, state: FinalState, colors: ColorFix | None = None) -> None:
    """A safetensors file: `latent`, and `moments.0` and so on in the decoder's order.

    Args:
        colors: that the decoded picture was corrected by.
    """
    moments = {f"moments.{index}": each for index, each in enumerate(state.moments)}
    _write(path, {"latent": state.latent, **moments}, {"colors": colors and [colors.gains, colors.offsets]})


def read_final_state(path: Path) -> FinalState:
    """Inverse of `write_final_state`.

    Raises:
        DamagedFileError: the file is damaged, not ours, or of another version.
    """
    tensors, _ = _read(path)
    try:
        return FinalState(
            tensors["latent"], tuple(tensors[f"moments.{index}"] for index in range(len(tensors) - 1))
        )
    except KeyError as error:
        raise DamagedFileError(f"{path.name} is no final state: it has no {error}") from error


def read_colors(path: Path) -> ColorFix | None:
    """What a final state's picture was corrected by; None: by nothing.

    Raises:
        DamagedFileError: as `read_final_state`.
    """
    kept = cast(list[list[float]] | None, _read(path)[1].get("colors"))
    return ColorFix(*map(tuple, kept)) if kept else None


def _write(path: Path, tensors: dict[str, Tensor], state: dict[str, object]) -> None:
    told = json.dumps(state | {"version": _VERSION})
    save_file(tensors, path, metadata={"chorale": told, **NO_CHECKSUM})
    write_checksum(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        verify_checksum(path)
        with cast(AbstractContextManager[_SafetensorsFile], safe_open(path, framework="pt")) as file:
            state: dict[str, object] = json.loads(file.metadata()["chorale"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path.name} cannot be read: {error}") from error
    if state.get("version") != _VERSION:
        raise DamagedFileError(f"{path.name} is of version {state.get('version')}; this one reads {_VERSION}")
    return tensors, state


class _SafetensorsFile(Protocol):
    """What `safe_open` opens; the package declares no types for it."""

    def metadata(self) -> dict[str, str]: ...

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...

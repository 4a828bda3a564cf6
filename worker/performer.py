"""Inside the engine process: load the model once, then sing whatever comes through the pipe."""

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection

import torch

from worker.adapters.errors import ModelError
from worker.adapters.model import LoadedModel
from worker.adapters.registry import load_model
from worker.engine.errors import EngineError
from worker.failures import describe
from worker.messages import Loaded, Refused, Report, Sing
from worker.performance import HaltedError, Performance
from worker.rehearsal import rehearse

_PR_SET_PDEATHSIG = 1


def serve(pipe: Connection, address: str, device: str, decode_memory_bytes: int, keep_every_s: float) -> None:
    """Answer commands until the consumer is gone."""
    _leave_signals_to_consumer()
    _die_with_consumer()
    try:
        model = _load(pipe, address, device)
        while model is not None:
            command = pipe.recv()
            if isinstance(command, Sing):  # a late Stop or Shown belongs to a job that has ended
                pipe.send(_perform(model, command, pipe, decode_memory_bytes, keep_every_s))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the consumer is gone


def _leave_signals_to_consumer() -> None:
    """Ctrl-C and service managers signal the whole group; the consumer decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _die_with_consumer() -> None:
    """Linux only; elsewhere the end of the pipe is noticed at the next tile."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _load(pipe: Connection, address: str, device: str) -> LoadedModel | None:
    try:
        model = load_model(address, _choose(device))
        tile_s, decode_s = rehearse(model)
    except (ModelError, EngineError, OSError, RuntimeError) as error:
        pipe.send(Refused(f"{type(error).__name__}: {error}"))
        return None
    pipe.send(Loaded(model.card, tile_s, decode_s))
    return model


def _choose(device: str) -> str:
    if device != "auto":
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _perform(
    model: LoadedModel, job: Sing, pipe: Connection, decode_memory_bytes: int, keep_every_s: float
) -> Report:
    """Every error becomes a report, so one bad job does not cost the loaded model."""
    try:
        return Performance(model, job, pipe, decode_memory_bytes, keep_every_s).finish()
    except HaltedError as halt:
        return halt.report
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the consumer is gone; nobody waits for threads of an open decode
    except Exception as error:
        return describe(error)

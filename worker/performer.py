"""Inside the engine process: load the model once, then sing whatever comes through the pipe."""

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection

from worker.adapters.source import ModelSource
from worker.choir import Choir
from worker.engine.errors import RankLostError
from worker.failures import describe
from worker.lifeline import tie_to_parent
from worker.messages import Loaded, Refused, Report, Sing
from worker.performance import HaltedError, Performance
from worker.readiness import Ready, explain, make_ready


def serve(
    pipe: Connection,
    source: ModelSource,
    devices: Sequence[str],
    decode_memory_mb: int | None,
    keep_every_s: float,
) -> None:
    """Answer commands until the consumer is gone; this process is the leader of all ranks."""
    tie_to_parent()
    with Choir(source, devices) as choir:
        try:
            ready = _load(pipe, source, devices[0], decode_memory_mb, choir)
            while ready is not None:
                command = pipe.recv()
                if isinstance(command, Sing):  # a late Stop or Shown belongs to a job that has ended
                    pipe.send(_perform(ready, command, pipe, choir, keep_every_s))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the consumer is gone
        except RankLostError:
            choir.end_for_loss()


def _load(
    pipe: Connection, source: ModelSource, device: str, decode_memory_mb: int | None, choir: Choir
) -> Ready | None:
    try:
        ready = make_ready(source, device, decode_memory_mb)
        choir.assemble(ready.device)
    except RankLostError:
        raise
    except Exception as error:
        pipe.send(Refused(explain(error)))
        return None
    pipe.send(Loaded(ready.card, ready.tile_s / choir.size, ready.decode_s / choir.size))
    return ready


def _perform(
    ready: Ready,
    job: Sing,
    pipe: Connection,
    choir: Choir,
    keep_every_s: float,
) -> Report:
    """Every error becomes a report, so one bad job does not cost the loaded model."""
    try:
        return Performance(ready, job, pipe, choir, keep_every_s).finish()
    except HaltedError as halt:
        return halt.report
    except RankLostError:
        raise
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the consumer is gone; nobody waits for threads of an open decode
    except Exception as error:
        return describe(error)

"""Inside the engine process: load the model once, then make whatever comes through the pipe."""

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection

from worker.adapters.source import ModelSource
from worker.engine.errors import RankLostError
from worker.process.failures import describe
from worker.process.protocol import Generate, Loaded, Refused, Report
from worker.process.ranks import RankProcesses, tie_to_parent
from worker.process.session import HaltedError, Session
from worker.process.warmup import Ready, explain, make_ready


def serve(
    pipe: Connection,
    source: ModelSource,
    devices: Sequence[str],
    decode_memory_mb: int | None,
    keep_every_s: float,
) -> None:
    """Answer commands until the consumer is gone; this process is the leader of all ranks."""
    tie_to_parent()
    with RankProcesses(source, devices) as ranks:
        try:
            ready = _load(pipe, source, devices[0], decode_memory_mb, ranks)
            while ready is not None:
                command = pipe.recv()
                if isinstance(command, Generate):  # a late Stop or Shown belongs to a job that has ended
                    pipe.send(_run_job(ready, command, pipe, ranks, keep_every_s))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the consumer is gone
        except RankLostError:
            ranks.end_for_loss()


def _load(
    pipe: Connection, source: ModelSource, device: str, decode_memory_mb: int | None, ranks: RankProcesses
) -> Ready | None:
    try:
        ready = make_ready(source, device, decode_memory_mb)
        ranks.assemble(ready.device)
    except RankLostError:
        raise
    except Exception as error:
        pipe.send(Refused(explain(error)))
        return None
    pipe.send(Loaded(ready.card, ready.tile_s / ranks.size, ready.decode_s / ranks.size))
    return ready


def _run_job(
    ready: Ready,
    job: Generate,
    pipe: Connection,
    ranks: RankProcesses,
    keep_every_s: float,
) -> Report:
    """Every error becomes a report, so one bad job does not cost the loaded model."""
    try:
        return Session(ready, job, pipe, ranks, keep_every_s).finish()
    except HaltedError as halt:
        return halt.report
    except RankLostError:
        raise
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the consumer is gone; nobody waits for threads of an open decode
    except Exception as error:
        return describe(error)

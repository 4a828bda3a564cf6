"""Inside the engine process: load the model once, then make the pictures that the pipe brings."""

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection

from worker.adapters.source import ModelSource
from worker.disk_faults import WORK_FOLDER, find_disk_fault
from worker.engine.errors import RankLostError
from worker.errors import DiskFullError
from worker.native_memory import give_back, keep_little, keep_spare
from worker.process.failures import describe
from worker.process.protocol import Generate, ModelLoaded, ModelRefused, Report, Stopped
from worker.process.ranks import RankProcesses, die_with_parent
from worker.process.session import StoppedError, run_session
from worker.process.warmup import Ready, explain, make_ready


def serve(
    pipe: Connection,
    source: ModelSource,
    devices: Sequence[str],
    decode_memory_mb: int | None,
    checkpoint_interval_s: float,
    *,
    digested: bool = False,
) -> None:
    """Answer commands until the consumer is gone; this process is the leader of all ranks."""
    die_with_parent()
    keep_little()
    keep_spare()
    with RankProcesses(source, devices) as ranks:
        try:
            ready = _load(pipe, source, devices[0], decode_memory_mb, ranks, digested=digested)
            while ready is not None:
                command = pipe.recv()
                if isinstance(command, Generate):  # any other belongs to a job that has ended
                    pipe.send(_run_job(ready, command, pipe, ranks, checkpoint_interval_s))
                    give_back()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the consumer is gone
        except RankLostError:
            ranks.exit_after_loss()


def _load(
    pipe: Connection,
    source: ModelSource,
    device: str,
    decode_memory_mb: int | None,
    ranks: RankProcesses,
    *,
    digested: bool,
) -> Ready | None:
    try:
        ready = make_ready(source, device, decode_memory_mb, digested=digested)
        ranks.assemble(ready.device)
    except RankLostError:
        raise
    except Exception as error:
        if isinstance(find_disk_fault(error, WORK_FOLDER), DiskFullError):
            raise  # no space to copy the model: another attempt may find some
        pipe.send(ModelRefused(explain(error)))
        return None
    pipe.send(ModelLoaded(ready.card, ready.tile_s / ranks.size, ready.decode_s / ranks.size, ready.digest))
    return ready


def _run_job(
    ready: Ready, job: Generate, pipe: Connection, ranks: RankProcesses, checkpoint_interval_s: float
) -> Report:
    """Every error becomes a report, so one bad job does not cost the loaded model."""
    try:
        return run_session(ready, job, pipe, ranks, checkpoint_interval_s)
    except StoppedError as stopped:
        return Stopped(stopped.step)
    except RankLostError:
        raise
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the consumer is gone; nobody waits for threads of an open decode
    except Exception as error:
        return describe(error)

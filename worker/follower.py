"""A rank that is not the leader: a process with its own device, which sings along and reports nothing."""

from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from worker.adapters.model import LoadedModel
from worker.adapters.source import ModelSource
from worker.checkpoint_file import read_checkpoint
from worker.engine.errors import DismissedError, RankLostError
from worker.engine.plan import GenerationPlan
from worker.engine.ranks import Ranks
from worker.failures import describe
from worker.lifeline import tie_to_parent
from worker.messages import Broke, Refused, Sing
from worker.readiness import explain, make_ready
from worker.singing import sing


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a rank sings."""

    rank: int
    size: int
    device: str
    meeting_point: Path


@dataclass(frozen=True, slots=True)
class Follow:
    """Sing along in this job, whose plan the leader has made."""

    job: Sing
    plan: GenerationPlan
    checkpoint: Path | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """The rank has its model and nothing to do; `broke` says how the last job ended here."""

    broke: Broke | None = None


def follow(pipe: Connection, source: ModelSource, seat: Seat) -> None:
    """Answer the leader until it is gone."""
    tie_to_parent()
    try:
        try:
            ready = make_ready(source, seat.device)
        except Exception as error:
            pipe.send(Refused(explain(error)))
            pipe.recv()  # to go now would look like death
            return
        pipe.send(Waiting())
        group = Ranks(seat.rank, seat.size, ready.device, seat.meeting_point)
        while True:
            pipe.send(Waiting(_sing_along(ready.model, pipe.recv(), group)))
    except (EOFError, BrokenPipeError, ConnectionResetError, RankLostError):
        return  # the leader is gone, or will not get far


def _sing_along(model: LoadedModel, part: Follow, group: Ranks) -> Broke | None:
    """
    Raises:
        RankLostError: another rank has died.
    """
    try:
        resume = read_checkpoint(part.checkpoint)[0] if part.checkpoint else None
        deque(sing(model, part.job, part.plan, resume, group), maxlen=0)
        group.meet()
    except DismissedError:
        return None
    except RankLostError:
        raise
    except Exception as error:
        group.leave()
        return describe(error)
    return None

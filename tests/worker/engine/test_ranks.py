"""ProcessGroup as real processes, over gloo."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from tests.tiny_models import tiny_stable_diffusion
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.canvas import Plane
from worker.engine.errors import DismissedError, RankLostError
from worker.engine.generate import generate
from worker.engine.plan import DecodePlan, DenoisePlan, GenerationPlan, StagePlan
from worker.engine.ranks import Group, ProcessGroup, SingleRank
from worker.engine.stitch import Band

Part = Callable[[Group, str], object]
CPU = torch.device("cpu")


def paint(group: Group, folder: str) -> bytes:
    """32 x 48 latent pixels in tiles of 16: uneven shares for any number of ranks; an exact decode."""
    denoise = DenoisePlan(Plane(32, 48), 16, 0, 4, moving=True, seed=3, outer_shares=(0.2, 0.2))
    stage = StagePlan(denoise, 4, modules=1)
    plan = GenerationPlan(
        3, 4, (stage,), DecodePlan(tile_size=8, mode="exact", memory_bytes=1, recompute=True)
    )
    prepared = load_model(folder, CPU).prepare(Conditions("lava", guidance_scale=3.0))
    bands = [event.rows for event in generate(plan, prepared, group=group) if isinstance(event, Band)]
    return torch.cat(bands).numpy().tobytes()


def agree(group: Group, _: str) -> list[bool]:
    """The second rank lacks something at the first meeting only."""
    return [group.barrier(ok=group.rank != 1), group.barrier()]


def leave_together(group: Group, _: str) -> str:
    """The last rank breaks: nobody may wait for it."""
    if group.rank == group.size - 1:
        group.abort()
        return "left"
    try:
        group.barrier()
    except DismissedError as error:
        return str(error)
    return "went on"


def lose_one(group: Group, _: str) -> str:
    """The last rank dies."""
    if group.rank == group.size - 1:
        multiprocessing.current_process().kill()
    try:
        group.barrier()
        group.all_gather(torch.ones(1))
    except RankLostError:
        return "lost"
    return "went on"


def _run(part: Part, rank: int, size: int, meeting_point: Path, folder: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    pipe.send(part(ProcessGroup(rank, size, CPU, meeting_point), folder))


def run_ranks(part: Part, size: int, folder: Path) -> list[object]:
    """What each rank says; a process that died says nothing."""
    spawning = multiprocessing.get_context("forkserver")
    spawning.set_forkserver_preload([__name__])
    pipes = [spawning.Pipe(duplex=False) for _ in range(size)]
    processes = [
        spawning.Process(
            target=_run, args=(part, rank, size, folder / f"store-{size}", str(folder / "tiny"), pipe[1])
        )
        for rank, pipe in enumerate(pipes)
    ]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()
    gathered: list[object] = []
    for process, (ours, _) in zip(processes, pipes, strict=True):
        try:
            gathered.append(ours.recv())
        except EOFError:
            gathered.append(None)
        process.join()
    return gathered


@pytest.mark.parametrize("size", [2, 4])
def test_one_and_more_ranks_give_the_same_bytes(size: int, tmp_path: Path) -> None:
    tiny_stable_diffusion(tmp_path / "tiny")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = paint(SingleRank(), str(tmp_path / "tiny"))
    torch.set_num_threads(threads)
    pictures = run_ranks(paint, size, tmp_path)
    assert pictures == [alone] * size


def test_all_learn_whether_one_lacks_something(tmp_path: Path) -> None:
    assert run_ranks(agree, 3, tmp_path) == [[False, True]] * 3


def test_nobody_waits_for_a_rank_that_breaks(tmp_path: Path) -> None:
    assert run_ranks(leave_together, 3, tmp_path) == ["another rank broke"] * 2 + ["left"]


def test_the_death_of_a_rank_is_noticed(tmp_path: Path) -> None:
    assert run_ranks(lose_one, 2, tmp_path) == ["lost", None]

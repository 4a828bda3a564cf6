"""How much main memory this process may still take, and what to do where there is none."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch


@dataclass(frozen=True, slots=True)
class MainMemory:
    """Bytes."""

    free: int
    total: int


def measure_main_memory(root: Path = Path("/")) -> MainMemory:
    """The least that the machine and every control group around this process leave over.

    Page cache that nobody reads counts as free. A group of version 1 or 2 counts with all that lie around it.

    Args:
        root: where `proc` and the groups' file systems lie; Linux only, elsewhere there are no groups.
    """
    machine = psutil.virtual_memory()
    memories = [MainMemory(machine.available, machine.total), *_measure_groups(root)]
    return MainMemory(
        min(measured.free for measured in memories), min(measured.total for measured in memories)
    )


def _measure_groups(root: Path) -> Iterator[MainMemory]:
    for version, mount, group in _find_groups(root):
        files = _FILES[version]
        for folder in [group, *group.parents]:
            if folder.is_relative_to(mount) and (measured := _measure_group(folder, *files)):
                yield measured


# Of each version: limit and use in bytes, and what `memory.stat` calls page cache that can be dropped.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def _measure_group(folder: Path, limit_file: str, use_file: str, droppable: str) -> MainMemory | None:
    """None where it sets no limit; version 1 then says about 2^63."""
    try:
        limit = int((folder / limit_file).read_text())
        used = int((folder / use_file).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return MainMemory(max(limit - max(used - int(stat.get(droppable, 0)), 0), 0), limit)
    except (OSError, ValueError):  # no such file, or the word "max"
        return None


def _find_groups(root: Path) -> Iterator[tuple[int, Path, Path]]:
    """(version, mount point, this process' group below it) of what may limit memory; cgroups(7), proc(5)."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        for number, controllers, path in groups:
            if kind == "cgroup2" and number == "0":
                yield 2, *_locate(root, fields, path)
            elif kind == "cgroup" and "memory" in options and "memory" in controllers.split(","):
                yield 1, *_locate(root, fields, path)


def _locate(root: Path, mount: list[str], path: str) -> tuple[Path, Path]:
    """A container may see only its own part of the tree mounted, whose root mountinfo names in its fourth field."""
    inside, place = PurePosixPath(path), root / mount[4].lstrip("/")
    if not inside.is_relative_to(mount[3]) or ".." in inside.parts:
        return place, place
    return place, place / inside.relative_to(mount[3])


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has a class for devices only; for main memory there are words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_unused_memory() -> None:
    """Give back what PyTorch keeps for later, so that smaller blocks fit between larger ones."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

"""Main memory as the machine and its control groups leave it over."""

from pathlib import Path

import psutil
import pytest

from worker.engine.memory import measure_main_memory

MIB = 1 << 20
NO_LIMIT = {1: str(2**63 - 4096), 2: "max"}
# As Linux mounts them: on a machine, in a container with a namespace of its own, and in one without.
MOUNTS = {
    1: "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory",
    2: "30 23 0:27 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate",
}
LINES = {1: "5:cpu,cpuacct:/elsewhere\n4:memory:{group}\n0::/\n", 2: "0::{group}\n"}
PLACES = {1: "sys/fs/cgroup/memory", 2: "sys/fs/cgroup"}
versions = pytest.mark.parametrize("version", [1, 2])


def put_process(root: Path, version: int, group: str, mounted: str = "/") -> None:
    """Let the kernel say that the process is in `group`, of a tree of which `mounted` and below is seen."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(LINES[version].format(group=group))
    mounts = ["24 28 0:22 / /proc rw,nosuid - proc proc rw", MOUNTS[version].format(root=mounted)]
    (root / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")


def put_group(root: Path, version: int, group: str, limit: str, used: int = 0, cache: int = 0) -> None:
    folder = root / PLACES[version] / group
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
    for name, text in zip(names[version], (limit, str(used)), strict=True):
        (folder / name).write_text(text + "\n")
    stat = {1: f"inactive_file 0\ntotal_inactive_file {cache}\n", 2: f"anon 7\ninactive_file {cache}\n"}
    (folder / "memory.stat").write_text(stat[version])


@versions
def test_a_limit_leaves_what_is_not_used_but_for_cache(tmp_path: Path, version: int) -> None:
    put_process(tmp_path, version, "/job")
    put_group(tmp_path, version, "job", str(64 * MIB), used=40 * MIB, cache=30 * MIB)
    memory = measure_main_memory(tmp_path)
    assert (memory.free, memory.total) == (54 * MIB, 64 * MIB)


@versions
def test_groups_around_count_too(tmp_path: Path, version: int) -> None:
    """The largest limit may leave the least."""
    put_process(tmp_path, version, "/pod/box/job")
    put_group(tmp_path, version, "pod", str(128 * MIB), used=120 * MIB)
    put_group(tmp_path, version, "pod/box", NO_LIMIT[version], used=90 * MIB)
    put_group(tmp_path, version, "pod/box/job", str(32 * MIB), used=MIB)
    memory = measure_main_memory(tmp_path)
    assert (memory.free, memory.total) == (8 * MIB, 32 * MIB)


@versions
def test_no_limit_is_the_machines_own(tmp_path: Path, version: int) -> None:
    put_process(tmp_path, version, "/job")
    put_group(tmp_path, version, "job", NO_LIMIT[version], used=MIB)
    assert measure_main_memory(tmp_path).total == psutil.virtual_memory().total


@versions
@pytest.mark.parametrize(
    ("group", "mounted"),
    [("/", "/"), ("/docker/1234", "/docker/1234"), ("/../1234", "/"), ("/not/seen/here", "/docker/1234")],
)
def test_a_container_sees_its_own_group_at_the_mount_point(
    tmp_path: Path, version: int, group: str, mounted: str
) -> None:
    put_process(tmp_path, version, group, mounted)
    put_group(tmp_path, version, "", str(2 * MIB), used=MIB)
    assert measure_main_memory(tmp_path).total == 2 * MIB


def test_an_overdrawn_group_leaves_nothing(tmp_path: Path) -> None:
    put_process(tmp_path, 2, "/job")
    put_group(tmp_path, 2, "job", str(MIB), used=2 * MIB)
    assert measure_main_memory(tmp_path).free == 0


def test_without_groups_it_is_what_psutil_says(tmp_path: Path) -> None:
    """As on macOS."""
    memory = measure_main_memory(tmp_path)
    assert memory.total == psutil.virtual_memory().total
    assert 0 < memory.free <= memory.total

"""What the system says about processes (Linux and macOS)."""

import subprocess


def find_children(pid: int) -> list[int]:
    """Process ids of the direct children."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in listing.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def find_engine(worker: int) -> int:
    """The engine process of a worker: its child that is not Python's resource tracker."""
    for child in find_children(worker):
        line = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(child)], capture_output=True, text=True
        ).stdout
        if "spawn_main" in line:
            return child
    raise LookupError(f"worker {worker} has no engine process")


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def resident_mib(pid: int) -> float:
    """Memory of a process, shared pages too."""
    kib = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(kib.stdout) / 1024

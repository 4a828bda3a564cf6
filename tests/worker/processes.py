"""What the system says about processes (Linux and macOS)."""

import psutil


def find_children(pid: int) -> list[int]:
    """Process ids of the direct children; of a process that is gone, none."""
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def find_engine(worker: int) -> int:
    """The engine process of a worker: its child that is not Python's resource tracker."""
    for child in find_children(worker):
        if "spawn_main" in command_of(child):
            return child
    raise LookupError(f"worker {worker} has no engine process")


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def resident_mib(pid: int) -> float:
    """Memory of a process, shared pages too."""
    return psutil.Process(pid).memory_info().rss / (1 << 20)


def command_of(pid: int) -> str:
    """Its command line; empty if it has ended or may not be looked at."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def environment_of(pid: int) -> str:
    """The same of its environment."""
    try:
        return "\n".join(psutil.Process(pid).environ().values())
    except psutil.Error:
        return ""

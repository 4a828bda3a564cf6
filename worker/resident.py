"""Main memory that a worker holds."""

import psutil


def measure_resident() -> int:
    """Bytes of this process and of all that it has started; what they share counts for each."""
    own = psutil.Process()
    return sum(map(_measure, [own, *own.children(recursive=True)]))


def _measure(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it has just ended
        return 0

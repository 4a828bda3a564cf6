"""The queue server of a data directory, for commands that need it whether or not a stack runs."""

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chorale.append_only_file import mend_for_start
from chorale.data_folder import DataFolder
from chorale.errors import AlreadyRunningError, PartFailedError
from chorale.part import Part
from chorale.queue_server import answers

_START_S = 10.0  # for which a stack that is starting is waited for
_STOP_S = 30.0
_LOOK_S = 0.05


@contextmanager
def open_data_queue(folder: DataFolder) -> Generator[str]:
    """Its address; where none runs, one is started for the block.

    Raises:
        AlreadyRunningError: a stack uses the directory, and its queue server did not answer within 10 s.
        DamagedQueueError: the queue's log is damaged, and its operator has to decide.
        PartFailedError: it does not start.
    """
    path, deadline = folder.socket(), time.monotonic() + _START_S
    with ExitStack() as own:
        while not answers(path):
            try:
                own.enter_context(folder.hold(""))
                own.enter_context(_started(folder, path))
            except AlreadyRunningError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)
        yield f"unix://{path}"


@contextmanager
def _started(folder: DataFolder, path: Path) -> Generator[None]:
    mend_for_start(folder.queue, print)
    arguments = (str(folder.queue), str(path), str(folder.parts_lock))
    queue = Part("queue", ("chorale.queue_server", *arguments), {}, folder.log("queue"), None)
    queue.start()
    try:
        while not answers(path):
            if death := queue.look_after():
                raise PartFailedError(f"{death.text} (log: {queue.log})")
            time.sleep(_LOOK_S)
        yield
    finally:
        queue.ask_to_stop()
        queue.await_end(_STOP_S)

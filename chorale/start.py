"""Stacks that commands start."""

import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from chorale.data_folder import DataFolder
from chorale.errors import NoConnectionError
from chorale.local import LocalStack, StackOptions
from chorale.plain_text import show

_QUIET_S = 4.0  # a start with the bundled model takes about as long


@contextmanager
def stack_for_call(data: Path | None, console: Console) -> Generator[str, None, None]:
    """The address of a stack that runs for the length of the block."""
    with _open_folder(data) as folder, start_stack(folder, StackOptions(), console) as stack:
        try:
            yield stack.url
        except NoConnectionError:
            stack.check()  # raises with the reason if a part has failed
            raise


@contextmanager
def start_stack(
    folder: DataFolder, options: StackOptions, console: Console
) -> Generator[LocalStack, None, None]:
    """A stack that is ready; a status line shows what it is waiting for."""

    def report(what: str) -> None:
        console.print(f"{time.strftime('%X')} {show(what)}", markup=False, highlight=False, soft_wrap=True)

    with LocalStack(folder, options, report) as stack:
        with console.status("starting the queue") as status:
            patience = _Patience(lambda missing: report(f"{stack.url} is not ready yet: {missing}"))

            def tell(missing: str) -> None:
                status.update(escape(show(missing)))
                patience.note(missing)

            stack.await_ready(tell)
        try:
            yield stack
        finally:
            console.print("stopping", style="dim")


class _Patience:
    """Says what a start waits for, once it takes longer than usual: a status line is for terminals alone, and leaves nothing."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said, self._said_at = "", time.monotonic()

    def note(self, missing: str) -> None:
        now = time.monotonic()
        if missing != self._said and now - self._said_at > _QUIET_S:
            self._said, self._said_at = missing, now
            self._say(missing)


@contextmanager
def _open_folder(data: Path | None) -> Generator[DataFolder, None, None]:
    """A temporary data directory for a stack of one call, unless one was given."""
    if data is not None:
        yield DataFolder(data)
        return
    with tempfile.TemporaryDirectory(prefix="chorale-") as folder:
        yield DataFolder(Path(folder))

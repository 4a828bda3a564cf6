"""Options that select a server, and the console for messages."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from chorale import installed
from chorale.data_folder import DataFolder
from chorale.errors import NoServerError

Url = Annotated[str | None, Option("--url", envvar="CHORALE_URL", help="Address of a running server.")]
Key = Annotated[
    str | None,
    Option(
        "--key",
        envvar="CHORALE_API_KEY",
        help="API key, where the server needs one. Other users of this machine see options, not the environment.",
    ),
]
Data = Annotated[
    Path | None,
    Option("--data", help="Data directory of the local stack.", show_default="per user"),
]


def find_server(url: str | None, data: Path | None) -> str:
    """
    Raises:
        NoServerError: none was given, and none runs here.
    """
    found = url or DataFolder(data).find_running()
    if found is None:
        raise NoServerError
    return found


def open_server(url: str | None, data: Path | None) -> AbstractContextManager[str]:
    """A running server, or else a local stack for one call."""
    found = url or DataFolder(data).find_running()
    if found is not None:
        return nullcontext(found)
    installed.require(installed.STACK, "all")
    from chorale.start import stack_for_call

    return stack_for_call(data, open_notes())


def open_notes() -> Console:
    """Console for everything but results, on standard error."""
    return Console(stderr=True)

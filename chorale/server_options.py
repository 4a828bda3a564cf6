"""Options that select a server, and the console for messages."""

import socket
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import urlsplit

from rich.console import Console
from typer import BadParameter, Option

from api_schemas.answers import JobView
from chorale import installed
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.errors import AddressError, NoServerError, UnavailableError
from chorale.file_options import read_folder
from chorale.plain_text import show
from chorale.protocol import job_path, server_url

_API_STARTS_S: Final = 60.0
_MODEL_LOADS_S: Final = 300.0
_LOOK_S: Final = 0.2
_ASK_AGAIN_S: Final = 2.0
Made = TypeVar("Made")


def _read_url(text: str) -> str:
    try:
        return server_url(text)
    except AddressError as error:
        raise BadParameter(str(error)) from error


Url = Annotated[
    str | None,
    Option(
        "--url", envvar="CHORALE_URL", parser=_read_url, metavar="URL", help="Address of a running server."
    ),
]
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
    Option(
        "--data",
        parser=read_folder,
        metavar="FOLDER",
        help="Data directory of the local stack.",
        show_default="per user",
    ),
]


def find_server(url: str | None, data: Path | None) -> str:
    """
    Raises:
        NoServerError: none was given, and none runs here.
    """
    found = url or _find_running(data)
    if found is None:
        raise NoServerError
    return found


def open_server(url: str | None, data: Path | None) -> AbstractContextManager[str]:
    """A running server, or else a local stack for one call."""
    found = url or _find_running(data)
    if found is not None:
        return nullcontext(found)
    installed.require(installed.STACK, "all")
    from chorale.start import stack_for_call

    return stack_for_call(data, open_notes())


def once_served(
    make: Callable[[], Made], patience_s: float = _MODEL_LOADS_S, ask_again_s: float = _ASK_AGAIN_S
) -> Made:
    """What the server makes, once a worker has loaded its model; that this is waited for is told, once.

    Raises:
        UnavailableError: none has within `patience_s`, or it is not for want of a model.
    """
    deadline, said = time.monotonic() + patience_s, ""
    while True:
        try:
            return make()
        except UnavailableError as error:
            if error.problem.code != "no_model" or time.monotonic() > deadline:
                raise
            if said != str(error):
                said = str(error)
                _tell(f"{said}: waiting for it, up to {patience_s:g} s")
            time.sleep(ask_again_s)


@contextmanager
def telling_what_is_kept(client: Client, job: JobView) -> Generator[None]:
    """Where a picture is that could not be written."""
    try:
        yield
    except OSError:
        _tell(f"if the server keeps running, the picture is kept: {client.url}{job_path(job.id, 'image')}")
        raise


def _find_running(data: Path | None) -> str | None:
    """The stack of a data directory, once its API takes connections: one that was just started may not yet."""
    folder, deadline, told = DataFolder(data), time.monotonic() + _API_STARTS_S, False
    while (found := folder.find_running()) and not _is_open(found) and time.monotonic() < deadline:
        if not told:
            _tell(f"{found} is starting: waiting for it, up to {_API_STARTS_S:g} s")
        told = True
        time.sleep(_LOOK_S)
    return found


def _is_open(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=1).close()
    except OSError:
        return False
    return True


def _tell(what: str) -> None:
    open_notes().print(show(what), style="dim", markup=False, highlight=False, soft_wrap=True)


def open_notes() -> Console:
    """Console for everything but results, on standard error."""
    return Console(stderr=True)

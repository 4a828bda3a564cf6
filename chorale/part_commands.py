"""`chorale serve`, `webhooks` and `worker`: one part of the stack alone, configured by the environment."""

import os
import sys
from typing import Annotated

import typer
from typer import Option

from chorale import installed
from chorale.data_folder import DataFolder
from chorale.server_options import Data

RootPath = Annotated[
    str | None,
    Option(
        envvar="CHORALE_ROOT_PATH",
        help="Path below which a proxy serves all this, as in /chorale.",
        show_default="none",
    ),
]
Devices = Annotated[
    str | None,
    Option(
        envvar="CHORALE_DEVICES",
        help="cpu, cuda:0, or several GPUs that share the tiles of each picture: 0,1",
        show_default="a GPU if there is one",
    ),
]


def add_to(app: typer.Typer) -> None:
    for command in (serve, webhooks, worker):
        app.command()(command)


def serve(root_path: RootPath = None) -> None:
    """Run the API alone; CHORALE_* in the environment configures queue and store."""
    installed.require(installed.SERVICE, "service")
    chosen = {} if root_path is None else {"CHORALE_ROOT_PATH": root_path}
    os.execve(sys.executable, [sys.executable, "-m", "service.main"], os.environ | chosen)


def webhooks() -> None:
    """Deliver webhooks; CHORALE_* in the environment configures the queue. `chorale up` runs one."""
    installed.require(installed.SERVICE, "service")
    os.execve(sys.executable, [sys.executable, "-m", "service.webhooks.main"], os.environ)


def worker(
    model: Annotated[
        str | None,
        Option(
            envvar="CHORALE_MODEL",
            help="Name on the allow-list, model folder, or name on the hub, as in someone/model.",
            show_default="the bundled model",
        ),
    ] = None,
    devices: Devices = None,
    data: Data = None,
) -> None:
    """Run one worker alone; CHORALE_* in the environment configures queue and store."""
    installed.require(installed.WORKER, "worker")
    given = {"CHORALE_MODEL": model, "CHORALE_DEVICES": devices}
    chosen = {name: value for name, value in given.items() if value is not None}
    defaults = {"CHORALE_MODELS_FILE": str(DataFolder(data).models_file)}
    os.execve(sys.executable, [sys.executable, "-m", "worker.main"], defaults | os.environ | chosen)

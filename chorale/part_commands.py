"""`chorale serve`, `webhooks` and `worker`: one part of the stack alone, configured by the environment."""

import os
import sys
from collections.abc import Mapping
from typing import Annotated, NoReturn

import typer
from typer import Option

from chorale import installed
from chorale.data_folder import DataFolder
from chorale.preflight import check_parts
from chorale.server_options import Data

RootPath = Annotated[
    str | None,
    Option(
        help="Path below which a proxy serves all this, as in /chorale.",
        show_default="CHORALE_ROOT_PATH, or none",
    ),
]
Devices = Annotated[
    str | None,
    Option(
        help="cpu, cuda:0, or several GPUs that share the tiles of each picture: 0,1",
        show_default="CHORALE_DEVICES, or a GPU if there is one",
    ),
]


def add_to(app: typer.Typer) -> None:
    for command in (serve, webhooks, worker):
        app.command()(command)


def serve(root_path: RootPath = None) -> None:
    """Run the API alone; CHORALE_* in the environment configures queue and store."""
    installed.require(installed.SERVICE, "service")
    chosen = {} if root_path is None else {"CHORALE_ROOT_PATH": root_path}
    _become("service", os.environ | chosen, chosen)


def webhooks() -> None:
    """Deliver webhooks; CHORALE_* in the environment configures the queue. `chorale up` runs one."""
    installed.require(installed.SERVICE, "service")
    os.execve(sys.executable, [sys.executable, "-m", "service.webhooks.main"], os.environ)


def worker(
    model: Annotated[
        str | None,
        Option(
            help="Name on the allow-list, model folder, or name on the hub, as in someone/model.",
            show_default="CHORALE_MODEL, or the bundled model",
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
    _become("worker", defaults | os.environ | chosen, chosen)


def _become(part: str, environment: Mapping[str, str], typed: Mapping[str, str]) -> NoReturn:
    """The part itself refuses what variables say; what was typed is named by its option before."""
    if typed:
        check_parts([(part, environment)], typed)
    os.execve(sys.executable, [sys.executable, "-m", f"{part}.main"], environment)

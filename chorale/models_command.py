"""`chorale models`: what is served, and what this machine's workers may load."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from api_schemas.allow_list import ControlKind, ModelKind
from chorale.allow_list import AllowListFile
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.server_options import Data, Key, Url, find_server
from chorale.tables import lay_allowed, lay_models, print_table
from chorale.typed_options import typed

app = typer.Typer(help="List served models, or edit the allow-list of this machine.")
File = Annotated[
    Path | None,
    Option(
        "--file", envvar="CHORALE_MODELS_FILE", help="The allow-list.", show_default="in the data directory"
    ),
]


@app.callback(invoke_without_command=True)
def show_served(context: typer.Context, url: Url = None, key: Key = None, data: Data = None) -> None:
    """List served models, or edit the allow-list of this machine."""
    if context.invoked_subcommand is None:
        with Client(find_server(url, data), api_key=key) as client:
            print_table(lay_models(client.models()))


@app.command()
def add(
    name: Annotated[str, Argument(help="Name for clients.")],
    path: Annotated[Path, Argument(help="A diffusers folder; for a LoRA or IP-Adapter also one file.")],
    kind: Annotated[ModelKind, typed(ModelKind, help="Kind of the entry.")] = "model",
    base: Annotated[
        str | None,
        Option(help="Model family of an add-on, as `chorale models` shows it.", show_default=False),
    ] = None,
    control: Annotated[
        ControlKind | None,
        typed(
            ControlKind,
            help="Of a ControlNet made for tiles: pictures are enlarged with it.",
            show_default=False,
        ),
    ] = None,
    file: File = None,
    data: Data = None,
) -> None:
    """Add a model or an add-on to the allow-list. Its files are checked against their digests at each load."""
    allow_list = AllowListFile(file or DataFolder(data).models_file)
    entry = allow_list.add(name, path, kind, base, control)
    print(f"{name}: {len(entry.files)} files of {entry.path}")


@app.command("list")
def show_allowed(file: File = None, data: Data = None) -> None:
    """List the entries of the allow-list."""
    allow_list = AllowListFile(file or DataFolder(data).models_file)
    print_table(lay_allowed(allow_list.read()))


@app.command()
def remove(name: Annotated[str, Argument()], file: File = None, data: Data = None) -> None:
    """Remove a model or an add-on from the allow-list. Workers that have loaded it keep it until they end."""
    AllowListFile(file or DataFolder(data).models_file).remove(name)
    print(f"{name} is removed")

"""`chorale verify`: what a picture says of itself; `chorale provenance init`: a certificate for trial."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer
from typer import Argument, Option

from chorale import installed
from chorale.data_folder import DataFolder
from chorale.errors import OriginError
from chorale.file_options import file_option
from chorale.plain_text import show
from chorale.server_options import Data

if TYPE_CHECKING:
    from provenance.reading import FileClaims, Manifest

_INVALID, _SILENT = 3, 4
_SIGNED: Final = {
    "trusted": "valid, and signed by one that you trust",
    "untrusted": "valid: nothing has changed since it was signed; but who signed is not known to be trusted",
    "invalid": "NOT valid",
    "none": "none",
}

app = typer.Typer(help="The certificate that pictures are signed with.", no_args_is_help=True)


def add_to(parent: typer.Typer) -> None:
    parent.command()(verify)
    parent.add_typer(app, name="provenance")


@app.command()
def init(
    out: Annotated[
        Path | None, Option(help="Folder for the files.", show_default="provenance, in the data directory")
    ] = None,
    data: Data = None,
) -> None:
    """Make a certificate for trial. Viewers will call it untrusted: nobody vouches for it but itself."""
    installed.require(installed.PROVENANCE, "provenance")
    from provenance.trial import make_trial

    folder = (out or DataFolder(data).path / "provenance").absolute()
    try:
        files = make_trial(folder)
    except FileExistsError as error:
        raise OriginError(f"{error.filename} is there already; another folder: --out DIR") from error
    print(f"CHORALE_PROVENANCE_CERTIFICATE={files.certificate}")
    print(f"CHORALE_PROVENANCE_KEY={files.key}")
    typer.echo(
        "For trial, valid for a year: viewers will call pictures that are signed with it untrusted, since nobody vouches"
        " for it.\nSet both variables for the worker (`chorale up` passes them on), then:"
        f" chorale verify FILE --trust {files.authority}",
        err=True,
    )


def verify(
    file: Annotated[Path, Argument(help="A PNG, JPEG, WebP or TIFF file.")],
    trust: Annotated[
        Path | None,
        file_option(
            help="PEM file of authorities; then any other signer counts as invalid.", show_default="none"
        ),
    ] = None,
) -> None:
    """Say what a picture says of its origin, and whether that holds. Nothing is fetched from anywhere.

    Exit codes: 0 it says something, and what can be checked holds; 1 the file cannot be read; 3 its manifest is not valid,
    or with --trust not of a trusted signer; 4 it says nothing.
    """
    installed.require(installed.PROVENANCE, "provenance")
    from provenance.errors import ProvenanceError
    from provenance.reading import read_claims

    try:
        claims = read_claims(file, trust)
    except ProvenanceError as error:
        raise OriginError(str(error)) from error
    for line in _describe(claims):
        print(show(line))
    sys.exit(_choose_exit(claims, is_strict=trust is not None))


def _choose_exit(claims: "FileClaims", *, is_strict: bool) -> int:
    state = claims.manifest.state
    if state == "invalid" or (is_strict and state == "untrusted"):
        return _INVALID
    return _SILENT if state == "none" and not claims.xmp_source_type and not claims.has_watermark else 0


def _describe(claims: "FileClaims") -> Iterator[str]:
    from provenance.source_types import explain_term

    yield f"C2PA manifest: {_SIGNED[claims.manifest.state]}"
    if claims.manifest.state != "none":
        yield from (f"  {line}" for line in _describe_manifest(claims.manifest))
    yield f"XMP: {explain_term(claims.xmp_source_type) if claims.xmp_source_type else 'no source type'}"
    found = "found: made by Chorale" if claims.has_watermark else "none found"
    yield f"watermark: {found} ({claims.watermark:.1f} standard deviations)"


def _describe_manifest(manifest: "Manifest") -> Iterator[str]:
    from provenance.source_types import explain_term

    yield from (f"problem: {problem}" for problem in manifest.problems)
    if manifest.signer:
        yield f"signer: {manifest.signer}, {manifest.signed_at or 'without a time stamp'}"
    if manifest.generator:
        yield f"program: {manifest.generator}"
    if manifest.source_type:
        yield f"source: {explain_term(manifest.source_type)}"
    yield from _describe_making(manifest.made)
    yield from (f"made of: {parent}" for parent in manifest.parents)


def _describe_making(made: dict[str, object]) -> Iterator[str]:
    for name, value in made.items():
        if isinstance(value, dict):
            told = cast(dict[str, object], value)
            value = ", ".join(f"{key} {each}" for key, each in told.items())
        if value != "":
            yield f"{name.replace('_', ' ')}: {value}"

"""Signs finished pictures: a C2PA manifest in the file, by the c2pa library."""

import base64
import hashlib
import json
from dataclasses import dataclass
from io import BufferedRandom, FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import c2pa  # pyright: ignore[reportMissingTypeStubs]

from provenance.credentials import Credentials, load_credentials
from provenance.errors import SigningError
from provenance.formats import find_media_type
from provenance.source_types import SourceType, name_term

GENERATION: Final = "chorale.generation"
"""Label of our own assertion: model, and prompt, seed and settings where they are wanted."""

_PIXEL: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
_PARENT: Final = "parent"
_DIGEST: Final = "chorale.sha256"
_SPILL_MB: Final = 32  # copies above this go to the system's folder for temporary files, not to memory
_SETTINGS: Final[dict[str, Any]] = {
    "version": 1,
    "core": {"backing_store_memory_threshold_in_mb": _SPILL_MB},
    "builder": {
        "thumbnail": {"enabled": False},  # of 8192 px it would take longer than all else
        # What the signer says itself, not what it was given by others (C2PA 2.2, 10.3.2.1: created_assertions).
        "created_assertion_labels": ["c2pa.actions", "c2pa.ingredient", GENERATION],
    },
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},  # nothing calls out unasked
}


@dataclass(frozen=True, slots=True)
class Parent:
    """The file of a picture that another was made of.

    Args:
        title: what is known of it.
        is_quoted: its own manifest, with all that it says and those of its parents, is kept; else the digest of the
            file is told.
    """

    path: Path
    title: str
    is_quoted: bool = True


@dataclass(frozen=True, slots=True)
class Claim:
    """What is said of a picture.

    Args:
        made: how, as JSON values, for our own assertion.
        parent: of one that begins with another picture.
    """

    version: str
    source_type: SourceType
    made: dict[str, object]
    parent: Parent | None = None


@dataclass(frozen=True, slots=True)
class ManifestSigner:
    """Signs with what two files hold at that moment.

    Args:
        timestamp_url: authority (RFC 3161) that confirms the time, or None.
    """

    certificate: Path
    key: Path
    timestamp_url: str | None = None

    def check(self) -> Credentials:
        """
        Raises:
            CredentialsError: certificate and key cannot sign now.
        """
        return load_credentials(self.certificate, self.key)

    def try_out(self) -> None:
        """Sign a picture of one pixel, without the time.

        Raises:
            CredentialsError: certificate and key cannot sign now.
            SigningError: the library's reason.
        """
        with TemporaryDirectory() as folder:
            path = Path(folder) / "pixel.png"
            path.write_bytes(_PIXEL)
            self.sign(path, Claim("", "trainedAlgorithmicMedia", {}), timed=False)

    def sign(self, path: Path, claim: Claim, *, timed: bool = True) -> None:
        """Put a manifest into the file. If that fails the file is as it was.

        Memory: as many bytes as a PNG, JPEG or WebP file has, and `_SPILL_MB`. Disk: a second file beside it.

        Args:
            timed: ask the authority for the time, if there is one.

        Raises:
            CredentialsError: certificate and key cannot sign now.
            SigningError: the library's reason.
            OSError: the new file cannot be written.
        """
        credentials = self.check()
        signed = path.with_name(f"signed-{path.name}")
        try:
            self._write(path, signed, claim, credentials, self.timestamp_url if timed else None)
            signed.replace(path)
        finally:
            signed.unlink(missing_ok=True)

    def _write(
        self, path: Path, signed: Path, claim: Claim, credentials: Credentials, timestamp_url: str | None
    ) -> None:
        with path.open("rb") as source, _Target(signed, "w+b") as target:
            try:
                builder = c2pa.Builder(json.dumps(_describe(claim)), context=make_context())
                with builder, _open_signer(credentials, timestamp_url) as signer:
                    if claim.parent is not None and claim.parent.is_quoted:
                        _quote_parent(builder, claim.parent)
                    with BufferedRandom(target) as buffered:
                        builder.sign(signer, find_media_type(path), source, buffered)
            except c2pa.C2paError as error:
                raise (target.error or SigningError(str(error))) from error


class _Target(FileIO):
    """The library swallows what a file raises, so the first is kept."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def make_context(trust_pem: str | None = None) -> c2pa.Context:
    """Settings of the library.

    Args:
        trust_pem: authorities that are trusted; there are no others.
    """
    trust: dict[str, Any] = {} if trust_pem is None else {"trust": {"user_anchors": trust_pem}}
    return c2pa.Context(c2pa.Settings.from_json(json.dumps(_SETTINGS | trust)))


def _open_signer(credentials: Credentials, timestamp_url: str | None) -> c2pa.Signer:
    info = c2pa.C2paSignerInfo(
        credentials.algorithm, credentials.chain_pem, credentials.key_pem, timestamp_url
    )
    return c2pa.Signer.from_info(info)


def _describe(claim: Claim) -> dict[str, Any]:
    agent = {"name": "Chorale", "version": claim.version}
    made = {"digitalSourceType": name_term(claim.source_type), "softwareAgent": agent}
    actions: list[dict[str, Any]] = [{"action": "c2pa.created", **made}]
    if claim.parent is not None:  # C2PA 2.2, 18.14: what has a parent begins with its being opened
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [_PARENT]}}
        actions = [opened, {"action": "c2pa.edited", **made}]
    parent = claim.parent
    return {
        "claim_generator_info": [agent],
        "ingredients": [_name_parent(parent)] if parent is not None and not parent.is_quoted else [],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": GENERATION, "data": claim.made},
        ],
    }


def _quote_parent(builder: c2pa.Builder, parent: Parent) -> None:
    ingredient = {"label": _PARENT, "title": parent.title, "relationship": "parentOf"}
    with parent.path.open("rb") as file:
        builder.add_ingredient(json.dumps(ingredient), find_media_type(parent.path), file)  # pyright: ignore[reportUnknownMemberType]


def _name_parent(parent: Parent) -> dict[str, Any]:
    """An ingredient whose file the library does not read, and so finds no manifest in."""
    with parent.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "label": _PARENT,
        "title": parent.title,
        "relationship": "parentOf",
        "format": find_media_type(parent.path),
        "metadata": {_DIGEST: digest},
    }

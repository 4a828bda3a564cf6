"""What a file says of itself: C2PA manifest, XMP, watermark. Nothing is fetched from anywhere."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast
from xml.etree import ElementTree

import c2pa  # pyright: ignore[reportMissingTypeStubs]
import pyvips

from provenance.detection import LEAST_SCORE, score_watermark
from provenance.errors import CredentialsError, UnreadableFileError
from provenance.formats import find_media_type
from provenance.manifest import GENERATION, make_context

State = Literal["none", "invalid", "untrusted", "trusted"]

_RDF: Final = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_IPTC: Final = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
_UNTRUSTED: Final = "signingCredential.untrusted"
_ACTIONS: Final = ("c2pa.actions.v2", "c2pa.actions")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The C2PA manifest of a file.

    Args:
        problems: what is wrong with it, in the library's words.
        made: our own assertion, as `provenance.manifest.Claim` says; empty in files of others.
        parents: how each picture that it was made of was signed, or that it was not.
    """

    state: State
    problems: tuple[str, ...] = ()
    signer: str = ""
    signed_at: str = ""
    generator: str = ""
    source_type: str = ""
    made: dict[str, object] = field(default_factory=dict[str, object])
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileClaims:
    """All that a file says.

    Args:
        xmp_source_type: address of the IPTC term, or "".
        watermark: standard deviations.
    """

    manifest: Manifest
    xmp_source_type: str
    watermark: float

    @property
    def has_watermark(self) -> bool:
        return self.watermark >= LEAST_SCORE


def read_claims(path: Path, trust: Path | None = None) -> FileClaims:
    """Read one picture.

    Args:
        trust: PEM file of authorities; no other signer is trusted.

    Raises:
        UnreadableFileError: it is no picture that can be read.
        CredentialsError: `trust` holds no certificates.
    """
    manifest = _read_manifest(path, find_media_type(path), None if trust is None else _read_trust(trust))
    return FileClaims(manifest, _read_xmp_source_type(path), score_watermark(path))


def _read_trust(path: Path) -> str:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{path} cannot be read: {error}") from error
    if "BEGIN CERTIFICATE" not in text:
        raise CredentialsError(f"{path} holds no certificates; allowed: PEM")
    return text


def _read_manifest(path: Path, media_type: str, trust_pem: str | None) -> Manifest:
    try:
        with (
            path.open("rb") as file,
            c2pa.Reader(media_type, file, context=make_context(trust_pem)) as reader,
        ):
            return _describe(
                cast(dict[str, Any], json.loads(reader.json())), str(reader.get_validation_state())
            )
    except c2pa.C2paError.ManifestNotFound:  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # set after the class
        return Manifest("none")
    except c2pa.C2paError as error:
        return Manifest("invalid", (str(error),))


def _describe(store: dict[str, Any], validation: str) -> Manifest:
    active = cast(dict[str, Any], store["manifests"][store["active_manifest"]])
    signature = cast(dict[str, Any], active.get("signature_info") or {})
    found = {each["label"]: each["data"] for each in active.get("assertions", ())}
    return Manifest(
        state={"Trusted": "trusted", "Valid": "untrusted"}.get(validation, "invalid"),  # pyright: ignore[reportArgumentType]
        problems=_list_problems(store),
        signer=_join(signature.get("common_name"), signature.get("issuer")),
        signed_at=str(signature.get("time") or ""),
        generator=_name_generator(active),
        source_type=_find_source_type(found),
        made=cast(dict[str, object], found.get(GENERATION, {})),
        parents=tuple(_describe_parent(each, store) for each in active.get("ingredients", ())),
    )


def _list_problems(store: dict[str, Any]) -> tuple[str, ...]:
    """Without that nobody is trusted, which the state says."""
    told = cast(list[dict[str, str]], store.get("validation_status") or [])
    return tuple(
        f"{each['code']}: {each.get('explanation', '')}" for each in told if each["code"] != _UNTRUSTED
    )


def _name_generator(manifest: dict[str, Any]) -> str:
    told = cast(list[dict[str, str]], manifest.get("claim_generator_info") or [{}])[0]
    return f"{told.get('name', '')} {told.get('version', '')}".strip()


def _find_source_type(assertions: dict[str, Any]) -> str:
    found = [assertions[label]["actions"] for label in _ACTIONS if label in assertions]
    actions = cast(list[dict[str, object]], found[0] if found else [])
    return next((str(each["digitalSourceType"]) for each in actions if "digitalSourceType" in each), "")


def _describe_parent(ingredient: dict[str, Any], store: dict[str, Any]) -> str:
    manifest = cast(dict[str, Any], store["manifests"]).get(ingredient.get("active_manifest", ""))
    if manifest is None:
        return "a picture without a manifest"
    signature = cast(dict[str, Any], manifest.get("signature_info") or {})
    return f"a picture signed by {_join(signature.get('common_name'), signature.get('issuer'))}"


def _join(*names: object) -> str:
    return ", ".join(dict.fromkeys(str(name) for name in names if name)) or "no name"


def _read_xmp_source_type(path: Path) -> str:
    """As an attribute or an element of any description (ISO 16684-1, 7.9)."""
    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential")
    except pyvips.Error as error:
        raise UnreadableFileError(f"{path} cannot be decoded; it may be damaged") from error
    if "xmp-data" not in image.get_fields():
        return ""
    packet = cast(bytes, image.get("xmp-data"))
    try:
        root = ElementTree.fromstring(packet.strip(b"\0 \r\n"))
    except ElementTree.ParseError:
        return ""
    for description in root.iter(f"{_RDF}Description"):
        element = description.find(_IPTC)
        if element is not None:
            return element.get(f"{_RDF}resource") or (element.text or "").strip()
        if _IPTC in description.attrib:
            return description.attrib[_IPTC]
    return ""

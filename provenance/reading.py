"""What a file says of itself: C2PA manifest, XMP, watermark. Nothing is fetched from anywhere."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast
from xml.etree import ElementTree

import c2pa  # pyright: ignore[reportMissingTypeStubs]
import pyvips
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provenance.detection import LEAST_SCORE, score_watermark
from provenance.errors import CredentialsError, UnreadableFileError
from provenance.formats import find_media_type
from provenance.manifest import GENERATION, make_context

State = Literal["none", "invalid", "untrusted", "trusted"]
Json = dict[str, object]

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
    made: Json = field(default_factory=Json)
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
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {(error.strerror or 'unknown').lower()}") from error
    except ValueError as error:
        raise CredentialsError(
            f"{path} holds no certificates, or one that is damaged; allowed: PEM, authorities only"
        ) from error
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates).decode()


def _read_manifest(path: Path, media_type: str, trust_pem: str | None) -> Manifest:
    try:
        with (
            path.open("rb") as file,
            c2pa.Reader(media_type, file, context=make_context(trust_pem)) as reader,
        ):
            return _describe(_as_object(json.loads(reader.json())), str(reader.get_validation_state()))
    except c2pa.C2paError.ManifestNotFound:  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # set after the class
        return Manifest("none")
    except c2pa.C2paError as error:
        return Manifest("invalid", (str(error),))
    except (ValueError, RecursionError):
        return Manifest("invalid", ("its assertions cannot be read",))


def _describe(store: Json, validation: str) -> Manifest:
    active = _find_manifest(store, store.get("active_manifest"))
    signature = _as_object(active.get("signature_info"))
    found = {str(each.get("label")): each.get("data") for each in _list_objects(active.get("assertions"))}
    return Manifest(
        state={"Trusted": "trusted", "Valid": "untrusted"}.get(validation, "invalid"),  # pyright: ignore[reportArgumentType]
        problems=_list_problems(store),
        signer=_join(signature.get("common_name"), signature.get("issuer")),
        signed_at=str(signature.get("time") or ""),
        generator=_name_generator(active),
        source_type=_find_source_type(found),
        made=_as_object(found.get(GENERATION)),
        parents=tuple(_describe_parent(each, store) for each in _list_objects(active.get("ingredients"))),
    )


def _as_object(value: object) -> Json:
    """Empty if it is anything else: whoever signs puts into assertions what they like."""
    return cast(Json, value) if isinstance(value, dict) else {}


def _list_objects(value: object) -> list[Json]:
    return [_as_object(each) for each in cast(list[object], value)] if isinstance(value, list) else []


def _find_manifest(store: Json, label: object) -> Json:
    return _as_object(_as_object(store.get("manifests")).get(str(label)))


def _list_problems(store: Json) -> tuple[str, ...]:
    """Without that nobody is trusted, which the state says."""
    return tuple(
        f"{each.get('code', '')}: {each.get('explanation', '')}"
        for each in _list_objects(store.get("validation_status"))
        if each.get("code") != _UNTRUSTED
    )


def _name_generator(manifest: Json) -> str:
    told = [*_list_objects(manifest.get("claim_generator_info")), {}][0]
    return f"{told.get('name', '')} {told.get('version', '')}".strip()


def _find_source_type(assertions: Json) -> str:
    found = [_as_object(assertions[label]) for label in _ACTIONS if label in assertions]
    actions = _list_objects(found[0].get("actions")) if found else []
    return next((str(each["digitalSourceType"]) for each in actions if "digitalSourceType" in each), "")


def _describe_parent(ingredient: Json, store: Json) -> str:
    manifest = _find_manifest(store, ingredient.get("active_manifest"))
    if not manifest:
        return "a picture without a manifest"
    signature = _as_object(manifest.get("signature_info"))
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
    except (
        ElementTree.ParseError,
        ValueError,
        LookupError,
    ):  # the last two: of encodings that it does not take
        return ""
    for description in root.iter(f"{_RDF}Description"):
        element = description.find(_IPTC)
        if element is not None:
            return element.get(f"{_RDF}resource") or (element.text or "").strip()
        if _IPTC in description.attrib:
            return description.attrib[_IPTC]
    return ""

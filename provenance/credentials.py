"""The certificate and key that manifests are signed with, checked as far as C2PA 2.2, 14.5, asks of them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID, ObjectIdentifier

from provenance.errors import CredentialsError

_CURVES: Final = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_LEAST_RSA_BITS: Final = 2048
_LARGEST_BYTES: Final = 1 << 20
_USAGES: Final = {
    ObjectIdentifier("1.3.6.1.5.5.7.3.4"),  # email protection
    ObjectIdentifier("1.3.6.1.5.5.7.3.36"),  # document signing
    ObjectIdentifier("1.3.6.1.4.1.62558.2.1"),  # C2PA claim signing
}

T = TypeVar("T", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs; `algorithm` is named as in C2PA.

    Args:
        chain_pem: the signer's certificate first.
        key_pem: never shown.
    """

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    algorithm: str
    signer: str


def load_credentials(certificate: Path, key: Path) -> Credentials:
    """Read both files now, so that they may be exchanged while the worker runs.

    Raises:
        CredentialsError: they cannot sign now.
    """
    chain_pem, key_pem = _read(certificate), _read(key)
    chain, secret = _parse_chain(chain_pem, certificate), _parse_key(key_pem, key)
    leaf = chain[0]
    algorithm = _find_algorithm(secret, key)
    if _dump(leaf.public_key()) != _dump(secret.public_key()):
        raise CredentialsError(f"{key} is not the key of the first certificate in {certificate}")
    _check_links(chain, certificate)
    _check_purpose(leaf, certificate)
    _check_time(chain, certificate)
    return Credentials(chain_pem, key_pem, algorithm, name_holder(leaf))


def name_holder(certificate: x509.Certificate) -> str:
    """Common name and organisation."""
    names = [
        str(each.value)
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
        for each in certificate.subject.get_attributes_for_oid(oid)
    ]
    return ", ".join(dict.fromkeys(names)) or "no name"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_BYTES)
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {(error.strerror or 'unknown').lower()}") from error


def _parse_chain(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CredentialsError(
            f"{path} holds no certificates; allowed: PEM, the signer's first, then those that vouch for it"
        ) from error


def _parse_key(pem: bytes, path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise CredentialsError(f"{path} is encrypted; allowed: a key without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:  # whose messages may hold parts of the key
        raise CredentialsError(f"{path} holds no private key; allowed: PEM, PKCS #8") from error


def _find_algorithm(key: PrivateKeyTypes, path: Path) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _LEAST_RSA_BITS:
        return "ps256"
    raise CredentialsError(
        f"{path} holds a key of another kind; allowed: P-256, P-384, P-521, Ed25519, RSA of {_LEAST_RSA_BITS} bits or more"
    )


def _dump(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]


def _check_links(chain: list[x509.Certificate], path: Path) -> None:
    if len(chain) == 1 and chain[0].issuer == chain[0].subject:
        raise CredentialsError(
            f"{path} holds a certificate that vouches for itself, which C2PA does not allow a signer;"
            " `chorale provenance init` makes one that another vouches for"
        )
    for below, above in pairwise(chain):
        try:
            below.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise CredentialsError(
                f"{path}: {name_holder(above)} has not issued the certificate of {name_holder(below)} before it"
            ) from error


def _check_purpose(leaf: x509.Certificate, path: Path) -> None:
    usage = _find_extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise CredentialsError(f"{path}: the signer's certificate lacks the key usage digital signature")
    constraints = _find_extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise CredentialsError(f"{path}: the first certificate is that of an authority, not of a signer")
    extended = _find_extension(leaf, x509.ExtendedKeyUsage)
    if extended is None or not _USAGES.intersection(extended):
        raise CredentialsError(
            f"{path}: the signer's certificate is for other purposes; its extended key usage has to be email"
            " protection, document signing or C2PA claim signing"
        )


def _find_extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _check_time(chain: list[x509.Certificate], path: Path) -> None:
    now = datetime.now(UTC)
    for each in chain:
        if now > each.not_valid_after_utc:
            raise CredentialsError(
                f"{path}: the certificate of {name_holder(each)} has expired, {each.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            )
        if now < each.not_valid_before_utc:
            raise CredentialsError(
                f"{path}: the certificate of {name_holder(each)} is not valid before"
                f" {each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            )

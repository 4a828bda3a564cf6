"""A certificate for trial: whoever made it vouches for it, and nobody else."""

import errno
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_EARLIER: Final = timedelta(hours=1)  # clocks differ


@dataclass(frozen=True, slots=True)
class TrialFiles:
    """Where they are.

    Args:
        certificate: the signer's and the authority's.
        key: the signer's, for its owner only; the authority's is thrown away.
        authority: for programs that are to trust it.
    """

    certificate: Path
    key: Path
    authority: Path


def name_trial_files(folder: Path) -> TrialFiles:
    return TrialFiles(folder / "certificate.pem", folder / "key.pem", folder / "authority.pem")


def make_trial(folder: Path, days: float = 365) -> TrialFiles:
    """Make an authority and a signer, both P-256 (ES256).

    Args:
        days: from now, until both expire; a past day makes an expired one.

    Raises:
        OSError: a file is there already, or cannot be written.
    """
    files = name_trial_files(folder)
    for path in (files.certificate, files.key, files.authority):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    top, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _issue(
        "Chorale trial authority", top.public_key(), "Chorale trial authority", top, days, is_authority=True
    )
    signer = _issue(
        "Chorale trial signer", key.public_key(), "Chorale trial authority", top, days, is_authority=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(files.key, secret, 0o600)
    _write(files.certificate, signer.public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM), 0o644)
    _write(files.authority, authority.public_bytes(Encoding.PEM), 0o644)
    return files


def _issue(
    name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: float,
    *,
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + timedelta(days=days)) - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True
        )
        .add_extension(_use_key(is_authority=is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if not is_authority:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Chorale trial, not verified"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _use_key(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)

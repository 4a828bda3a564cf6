"""Which certificates are refused, and what is said."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provenance.credentials import load_credentials
from provenance.errors import CredentialsError
from provenance.manifest import ManifestSigner
from provenance.trial import TrialFiles

AUTHORITY = ec.generate_private_key(ec.SECP256R1())
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def write(
    folder: Path, key: Key, *, usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION
) -> tuple[Path, Path]:
    """A certificate for that key and purpose, and the key."""
    now, issuer = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Signer")]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(AUTHORITY.public_key()), critical=False
        )
        .sign(AUTHORITY, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "es256"),
        (ec.generate_private_key(ec.SECP384R1()), "es384"),
        (ec.generate_private_key(ec.SECP521R1()), "es512"),
        (ed25519.Ed25519PrivateKey.generate(), "ed25519"),
        (rsa.generate_private_key(65537, 2048), "ps256"),
    ],
)
def test_the_algorithm_is_the_keys_and_the_library_signs_with_it(
    tmp_path: Path, key: Key, algorithm: str
) -> None:
    paths = write(tmp_path, key)
    assert load_credentials(*paths).algorithm == algorithm
    ManifestSigner(*paths).try_out()


def test_what_cannot_sign_is_refused_by_name(
    trial: TrialFiles, expired: TrialFiles, missing: Path, tmp_path: Path
) -> None:
    secret = load_pem_private_key(trial.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    weak, server = tmp_path / "weak", tmp_path / "server"
    weak.mkdir()
    server.mkdir()
    small = write(weak, ec.generate_private_key(ec.SECP192R1()))
    alone = tmp_path / "alone.pem"
    alone.write_bytes(trial.authority.read_bytes())
    unlinked = tmp_path / "unlinked.pem"
    unlinked.write_bytes(trial.certificate.read_bytes() + expired.authority.read_bytes())
    cases = [
        (missing, trial.key, "no such file"),
        (trial.key, trial.key, "holds no certificates"),
        (trial.certificate, trial.certificate, "holds no private key"),
        (trial.certificate, locked, "without a passphrase"),
        (trial.certificate, expired.key, "is not the key of the first certificate"),
        (expired.certificate, expired.key, "has expired"),
        (*small, "a key of another kind"),
        (
            *write(server, ec.generate_private_key(ec.SECP256R1()), usage=ExtendedKeyUsageOID.SERVER_AUTH),
            "for other purposes",
        ),
        (unlinked, trial.key, "has not issued"),
    ]
    for certificate, key, reason in cases:
        with pytest.raises(CredentialsError, match=reason) as refused:
            load_credentials(certificate, key)
        assert "PRIVATE KEY" not in str(refused.value)


def test_the_trial_key_is_for_its_owner_only(trial: TrialFiles) -> None:
    assert trial.key.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in repr(load_credentials(trial.certificate, trial.key))

"""Keys and certificates, as an administrator would make them."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_pool: dict[str, list[Key]] = {}
_pool_lock = threading.Lock()


@dataclass(frozen=True)
class Credentials:
    """Files on disk, and what is needed to talk about them."""

    key_file: Path
    certificate_file: Path
    thumbprint_sha1_hex: str
    thumbprint_sha256_hex: str
    not_before: datetime
    not_after: datetime
    passphrase: str | None
    key: Key
    certificate: x509.Certificate

    @property
    def private_key_pem(self) -> str:
        return self.key_file.read_text()

    @property
    def certificate_pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


def pooled_key(kind: str, place: int) -> Key:
    """The same key for the same place: making one costs up to a second."""
    with _pool_lock:
        keys = _pool.setdefault(kind, [])
        while len(keys) <= place:
            keys.append(_new_key(kind))
        return keys[place]


def _new_key(kind: str) -> Key:
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:]))
    if kind == "ec256":
        return ec.generate_private_key(ec.SECP256R1())
    message = f"no such kind of key: {kind!r} (rsa2048, rsa3072, rsa4096, ec256)"
    raise ValueError(message)


def make_credentials(
    folder: Path,
    name: str,
    key: Key,
    *,
    passphrase: str | None = None,
    valid_days: float = 365,
    not_before: datetime | None = None,
    combined: bool = False,
    encoding: str = "PKCS8",
) -> Credentials:
    """Write key and certificate; `valid_days` below 0: ended that long ago."""
    now = datetime.now(UTC).replace(microsecond=0)
    if not_before is None:
        start = now - timedelta(days=1)
        end = now + timedelta(days=valid_days)
        if end <= start:
            start = end - timedelta(days=365)
    else:
        start, end = not_before, not_before + timedelta(days=valid_days)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"audit {name}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    key_pem = _key_pem(key, passphrase, encoding)
    certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
    key_file = folder / f"{name}.key.pem"
    certificate_file = folder / f"{name}.crt.pem"
    if combined:
        certificate_file = key_file = folder / f"{name}.pem"
        key_pem = certificate_pem = key_pem + certificate_pem
    certificate_file.write_bytes(certificate_pem)
    key_file.write_bytes(key_pem)
    key_file.chmod(0o600)
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Credentials(
        key_file=key_file,
        certificate_file=certificate_file,
        thumbprint_sha1_hex=hashlib.sha1(der, usedforsecurity=False).hexdigest(),
        thumbprint_sha256_hex=hashlib.sha256(der).hexdigest(),
        not_before=start,
        not_after=end,
        passphrase=passphrase,
        key=key,
        certificate=certificate,
    )


def _key_pem(key: Key, passphrase: str | None, encoding: str) -> bytes:
    formats = {
        "PKCS8": serialization.PrivateFormat.PKCS8,
        "PKCS1": serialization.PrivateFormat.TraditionalOpenSSL,
    }
    cipher: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        cipher = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(
        serialization.Encoding.PEM, formats[encoding.upper()], cipher
    )

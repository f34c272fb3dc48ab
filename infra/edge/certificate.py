"""The edge's certificate, as a user brings it: read, checked before anything is changed, and trusted by ourselves.

Pure, but for reading the two files. Where nginx finds them is `infra.edge.config`'s.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from infra.errors import InfraError

PLACEHOLDER_DAYS = 90


class CertificateError(InfraError):
    """The edge cannot use this certificate; the message says why."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain in PEM, the server's own first, and its key."""

    chain: bytes
    key: bytes

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain)

    @property
    def names(self) -> tuple[str, ...]:
        """What it is good for: host names and addresses."""
        try:
            found = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        return (
            *found.get_values_for_type(x509.DNSName),
            *(str(each) for each in found.get_values_for_type(x509.IPAddress)),
        )

    @property
    def ends(self) -> datetime:
        return self.leaf.not_valid_after_utc


def read_certificate(chain: Path, key: Path, now: datetime) -> Certificate:
    """Both files. Raises CertificateError if one cannot be read, they do not belong together, or it has run out."""
    read = []
    for setting, file in (("certificate", chain), ("key", key)):
        try:
            read.append(file.read_bytes())
        except OSError as error:
            raise CertificateError(f"router.edge.tls.{setting}: {file} cannot be read: {error.strerror}") from None
    found = Certificate(*read)
    try:
        leaf = found.leaf
    except ValueError:
        raise CertificateError(f"router.edge.tls.certificate: {chain} is no certificate in PEM") from None
    try:
        private = load_pem_private_key(found.key, password=None)
    except (ValueError, TypeError):
        raise CertificateError(
            f"router.edge.tls.key: {key} is no private key in PEM, or is locked with a passphrase"
        ) from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise CertificateError(
            f"router.edge.tls: {key} is not the key of {chain}; the server's own certificate stands first in that file"
        )
    if leaf.not_valid_after_utc <= now:
        raise CertificateError(f"router.edge.tls.certificate: {chain} ran out on {leaf.not_valid_after_utc:%Y-%m-%d}")
    return found


def covers(certificate: Certificate, host: str) -> bool:
    """Whether clients that ask for `host` will take it."""
    wild = "*." + host.partition(".")[2]
    return any(name.lower() in (host.lower(), wild.lower()) for name in certificate.names)


def trusting(chain: bytes) -> ssl.SSLContext:
    """For our own questions to the edge: exactly this certificate, or what the system trusts.

    Its names are not asked for: we come by an address that need not stand in it.
    """
    context = ssl.create_default_context(cadata=chain.decode())
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def placeholder(host: str, now: datetime) -> Certificate:
    """Signed by itself: what the edge shows until an authority has signed another one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=PLACEHOLDER_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certificate(signed.public_bytes(Encoding.PEM), pem)


def self_signed(chain: bytes) -> bool:
    leaf = x509.load_pem_x509_certificate(chain)
    return leaf.issuer == leaf.subject

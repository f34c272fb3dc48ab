"""A certificate authority of a test's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


class Authority:
    """Signs for names; `root` is what a client trusts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's authority")])
        self.root = folder / "root.pem"
        basic = x509.BasicConstraints(ca=True, path_length=0)
        signed = self._builder(self._name, 30 * DAY, self._key).add_extension(basic, critical=True)
        self.root.write_bytes(signed.sign(self._key, SHA256()).public_bytes(Encoding.PEM))

    def sign(self, host: str, good_for: timedelta = 30 * DAY, called: str = "server") -> tuple[Path, Path]:
        """A certificate for a host's name, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        signed = self._builder(subject, good_for, key).add_extension(names, critical=False).sign(self._key, SHA256())
        chain, private = self._folder / f"{called}.pem", self._folder / f"{called}.key"
        chain.write_bytes(signed.public_bytes(Encoding.PEM) + self.root.read_bytes())
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return chain, private

    def _builder(
        self, subject: x509.Name, good_for: timedelta, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(now + good_for)
        )

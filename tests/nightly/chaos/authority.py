"""Certificates to try TLS with, good ones and bad ones: a CA, and what it signs."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key, not encrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, path: Path, *, with_key: bool = False) -> Path:
        """Write the certificate, and the key behind it."""
        path.write_bytes(self.pem + (self.key_pem if with_key else b""))
        return path


def make_certificate(
    name: str, issuer: Certificate | None = None, *, days: tuple[int, int] = (-1, 1)
) -> Certificate:
    """A certificate for a name; without an issuer it is a CA's.

    Args:
        name: a host's name.
        issuer: who signs it.
        days: valid from and until, days from now.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    signed = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    return Certificate(signed, key)


def server_credentials(
    server: Certificate, *, clients_of: Certificate | None = None
) -> grpc.ServerCredentials:
    """Of a gRPC server; with `clients_of` only clients with a certificate of that CA are served."""
    return grpc.ssl_server_credentials(
        [(server.key_pem, server.pem)],
        clients_of.pem if clients_of else None,
        require_client_auth=clients_of is not None,
    )

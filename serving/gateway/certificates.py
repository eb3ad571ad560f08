"""A certificate authority for development: what TLS is tried with, never what production trusts."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fruitstand.artefacts import write_bytes
from fruitstand.errors import UsageError

CA_NAME = "ca.crt"


def write_dev_certificates(directory: Path, *, hosts: list[str], days: int) -> None:
    """Write a new CA, and a certificate and key of it for the server and for a client.

    The CA's own key is forgotten: nobody can sign more with it.

    Args:
        directory: gets ca.crt, server.crt, server.key, client.crt and client.key.
        hosts: names and addresses of the server.
        days: how long all of them are valid.

    Raises:
        UsageError: there are certificates in the directory already.
    """
    if (directory / CA_NAME).exists():
        raise UsageError(f"{directory}: has a {CA_NAME} already; take another directory, or remove it")
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fruitstand development CA")])
    ca = _certificate(ca_name, ca_key, ca_name, ca_key, days, ca=True)
    for name, usage, names in (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH, hosts),
        ("client", ExtendedKeyUsageOID.CLIENT_AUTH, ["fruitstand-client"]),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        signed = _certificate(subject, key, ca_name, ca_key, days, usage=usage, names=names)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_bytes(directory / f"{name}.key", pem)
        (directory / f"{name}.key").chmod(0o600)
        write_bytes(directory / f"{name}.crt", signed.public_bytes(serialization.Encoding.PEM))
    write_bytes(directory / CA_NAME, ca.public_bytes(serialization.Encoding.PEM))


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
    *,
    ca: bool = False,
    usage: x509.ObjectIdentifier | None = None,
    names: list[str] | None = None,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, 0 if ca else None), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)

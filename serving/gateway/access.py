"""Access to the gateway: a folder of certificates and API keys.

DIR/
├── server.crt, server.key   turn on TLS; both or neither
├── clients.crt              the clients' CA; if present, clients need a certificate signed by it
└── api_keys.json            if present, callers need one of these keys (`fruitstand keys`)
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fruitstand.errors import ArtefactError, UsageError
from serving.gateway.api_keys import ApiKey, read_api_keys

API_KEYS_NAME = "api_keys.json"


@dataclass(frozen=True, slots=True)
class Access:
    """The content of the folder at the time it was read."""

    certificate: str | None = None
    """The server's certificate, PEM; so are the next two."""
    private_key: str | None = None
    clients_ca: str | None = None
    keys: tuple[ApiKey, ...] | None = None
    """None lets callers in without a key."""


def read_access(directory: Path | None) -> Access:
    """Read the folder and check that its files fit together; None allows everyone.

    Raises:
        UsageError: no such folder, or only one of certificate and key is there.
        ArtefactError: a file cannot be read, or the private key does not match the certificate.
    """
    if directory is None:
        return Access()
    if not directory.is_dir():
        raise UsageError(
            f"{directory}: no such folder; 'fruitstand certs dev --out DIR' makes one for testing"
        )
    certificate, key, clients = (
        _read(directory / name) for name in ("server.crt", "server.key", "clients.crt")
    )
    if (certificate is None) != (key is None):
        raise UsageError(f"{directory}: needs both server.crt and server.key, one is missing")
    if clients is not None and certificate is None:
        raise UsageError(f"{directory}: clients.crt needs server.crt and server.key beside it")
    try:
        if certificate and key:
            public = x509.load_pem_x509_certificates(certificate)[0].public_key()
            private = serialization.load_pem_private_key(key, None)
            if public != private.public_key():
                raise ValueError("server.key does not match server.crt")
        if clients is not None:
            x509.load_pem_x509_certificates(clients)
    except (TypeError, ValueError) as exc:
        raise ArtefactError(f"{directory}: certificates cannot be used: {exc}") from exc
    keys = directory / API_KEYS_NAME
    return Access(
        *(None if pem is None else pem.decode() for pem in (certificate, key, clients)),
        tuple(read_api_keys(keys)) if keys.exists() else None,
    )


def check_exposure(address: str, access: Access, *, insecure: bool) -> None:
    """Refuse to listen beyond loopback in clear text.

    Raises:
        UsageError: not an IP address, or not a loopback address and no TLS.
    """
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError as exc:
        raise UsageError(f"{address}: not an IP address to listen on; loopback is 127.0.0.1") from exc
    if not loopback and access.certificate is None and not insecure:
        raise UsageError(
            f"other machines can reach {address}: give certificates with --access DIR, or add --insecure"
        )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ArtefactError(f"{path}: cannot be read ({exc.strerror})") from exc

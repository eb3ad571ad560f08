"""Who may call the gateway: a folder of certificates and API keys.

DIR/
├── server.crt, server.key   TLS; both or neither
├── clients.crt              the CA of the clients: with it only clients with a certificate are served
└── api_keys.json            with it only callers with a key are served (`fruitstand keys`)
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
    """What the folder said when it was read."""

    certificate: str | None = None
    """PEM; so is `private_key`."""
    private_key: str | None = None
    clients_ca: str | None = None
    keys: tuple[ApiKey, ...] | None = None
    """None: callers need no key."""


def read_access(directory: Path | None) -> Access:
    """Read the folder and check that its parts belong together; without one, everybody may call.

    Raises:
        UsageError: no such folder, or one of the certificate and its key is missing.
        ArtefactError: a file cannot be read, or the key is not the certificate's.
    """
    if directory is None:
        return Access()
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such folder; 'fruitstand certs dev --out DIR' makes one to try")
    certificate, key, clients = (
        _read(directory / name) for name in ("server.crt", "server.key", "clients.crt")
    )
    if (certificate is None) != (key is None):
        raise UsageError(f"{directory}: server.crt and server.key belong together, one is missing")
    if clients is not None and certificate is None:
        raise UsageError(f"{directory}: clients.crt needs server.crt and server.key beside it")
    try:
        if certificate and key:
            public = x509.load_pem_x509_certificates(certificate)[0].public_key()
            private = serialization.load_pem_private_key(key, None)
            if public != private.public_key():
                raise ValueError("server.key is not the key of server.crt")
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
    """Refuse to listen beyond this machine in clear text.

    Raises:
        UsageError: the address is none, or it is no loopback address and there is no TLS.
    """
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError as exc:
        raise UsageError(f"{address}: no IP address to listen on; loopback is 127.0.0.1") from exc
    if not loopback and access.certificate is None and not insecure:
        raise UsageError(
            f"{address} is reached from other machines: give certificates (--access DIR), or say --insecure"
        )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ArtefactError(f"{path}: cannot be read ({exc.strerror})") from exc

"""Whom to trust and who one is: the certificates of a connection."""

from dataclasses import dataclass
from pathlib import Path

from fruitstand.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """Encrypt the connection; with a certificate of one's own it is mutual."""

    ca: Path | None = None
    """PEM file with the certificates to trust; None takes gRPC's own list of public ones."""
    certificate: Path | None = None
    """PEM file with the client's certificate chain."""
    key: Path | None = None
    """PEM file with the client's private key; None looks for it in `certificate`."""
    server_name: str | None = None
    """Name in the server's certificate, where it is not the host of the address."""

    def read(self) -> dict[str, bytes | None]:
        """The arguments of `grpc.ssl_channel_credentials`.

        Raises:
            UsageError: a file that cannot be read or is no PEM.
        """
        key = self.key or self.certificate
        return {
            "root_certificates": _pem(self.ca, "CERTIFICATE"),
            "certificate_chain": _pem(self.certificate, "CERTIFICATE"),
            "private_key": _pem(key, "PRIVATE KEY"),
        }


def _pem(path: Path | None, kind: str) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}") from exc
    if f"{kind}-----".encode() not in content:
        raise UsageError(f"{path}: no {kind.lower()} in it; a PEM file with one is needed")
    return content

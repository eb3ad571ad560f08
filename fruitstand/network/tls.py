"""TLS settings of a connection: trusted CAs and the client's own certificate."""

from dataclasses import dataclass
from pathlib import Path

from fruitstand.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """TLS settings; with a client certificate, both sides authenticate."""

    ca: Path | None = None
    """PEM file with the CA certificates to trust; None uses gRPC's list of public CAs."""
    certificate: Path | None = None
    """PEM file with the client's certificate chain."""
    key: Path | None = None
    """PEM file with the client's private key; None looks for it in `certificate`."""
    server_name: str | None = None
    """Name in the server's certificate, if it differs from the host of the address."""

    def read(self) -> dict[str, bytes | None]:
        """Read the arguments of `grpc.ssl_channel_credentials`.

        Raises:
            UsageError: a file cannot be read or is not PEM.
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
        raise UsageError(f"{path}: no {kind.lower()} in it; give a PEM file with one")
    return content

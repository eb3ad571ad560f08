"""Certificates for testing TLS on a development machine; do not trust them in production."""

import datetime
from pathlib import Path

import trustme

from fruitstand.artefacts import write_bytes
from fruitstand.errors import UsageError

CA_NAME = "ca.crt"


def write_dev_certificates(directory: Path, *, hosts: list[str], days: int) -> None:
    """Write a new CA, and a certificate with key for the server and for one client.

    The CA's private key is thrown away, so that nobody can sign further certificates.

    Raises:
        UsageError: the directory has certificates already, or a host is neither a name nor an address.
    """
    if (directory / CA_NAME).exists():
        raise UsageError(f"{directory}: already has a {CA_NAME}; choose another directory, or remove it")
    ca = trustme.CA(organization_name="fruitstand", organization_unit_name="development")
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    for name, identities in (("server", hosts), ("client", ["fruitstand-client"])):
        try:
            issued = ca.issue_cert(*identities, common_name=identities[0], not_after=expires)
        except ValueError as exc:
            raise UsageError(f"--hosts: got {','.join(identities)}: {exc}") from exc
        write_bytes(directory / f"{name}.key", issued.private_key_pem.bytes())
        (directory / f"{name}.key").chmod(0o600)
        write_bytes(directory / f"{name}.crt", issued.cert_chain_pems[0].bytes())
    write_bytes(directory / CA_NAME, ca.cert_pem.bytes())

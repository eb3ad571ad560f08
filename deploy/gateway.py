"""The gateway's configuration for a cluster, from the same source as on one machine.

    python -m deploy.gateway [--out OVERLAY --access DIR]

Writes `bootstrap.json`, `routes.json` and `server.json`, which the kustomize base puts into a ConfigMap. They
are committed, and a test fails when they are not what this renders. With `--access DIR` callers need one of
the API keys in DIR/api_keys.json (hashes only go into the ConfigMap); write into an overlay then.

What differs from one machine: the servers are found under a DNS name, the certificate is a mounted Secret
that Envoy watches, and of the admin endpoint, which can also end Envoy, others reach only the metrics and
`/ready`.
"""

from pathlib import Path
from typing import Annotated

import typer

from fruitstand.artefacts import write_json
from serving.gateway.access import Access, read_access
from serving.gateway.config import bootstrap
from serving.gateway.envoy_json import PACKAGE, Json, address
from serving.gateway.routes import routes
from serving.triton.embedded import CONTROL_HEADER

BASE = Path(__file__).parent / "kubernetes" / "base" / "envoy"
FOLDER = Path("/etc/envoy")
CERTIFICATE = Path("/etc/envoy-tls")
SERVERS = ("triton", 8001)
"""The headless Service and its port."""
MAX_REPLICAS = 20
"""Of the autoscaler: the gateway lets through what so many can hold."""
PORT, METRICS_PORT, ADMIN_PORT = 8443, 9901, 9900
WEB_PORT, INNER_PORT = 8081, 9902
"""On loopback inside the pod: of the container `web`, and where it asks over gRPC."""


def render(access: Access, *, folder: Path = FOLDER, certificate: Path = CERTIFICATE) -> dict[str, Json]:
    """The files' contents by name.

    Args:
        access: the callers' keys; its certificates are not used.
        folder: where the files will lie.
        certificate: folder of `tls.crt` and `tls.key`.
    """
    document = bootstrap(
        folder,
        listen="0.0.0.0",  # what may come in is the NetworkPolicy's to say
        metrics_listen="0.0.0.0",
        metrics_port=METRICS_PORT,
        admin=address("127.0.0.1", ADMIN_PORT),  # the folder is mounted read-only: no place for a socket
        port=PORT,
        tls=Access(certificate=str(certificate / "tls.crt"), private_key=str(certificate / "tls.key")),
        replicas=MAX_REPLICAS,
        web_port=WEB_PORT,
        inner_port=INNER_PORT,
        dns=SERVERS,
    )
    secret = {
        "@type": f"{PACKAGE}.extensions.transport_sockets.tls.v3.Secret",
        "name": "server",
        "tls_certificate": {
            "certificate_chain": {"filename": str(certificate / "tls.crt")},
            "private_key": {"filename": str(certificate / "tls.key")},
            "watched_directory": {"path": str(certificate)},
        },
    }
    allowed = routes(access, control_header=f"triton-grpc-protocol-{CONTROL_HEADER}")
    return {
        "bootstrap.json": document,
        "routes.json": {"resources": [allowed]},
        "server.json": {"resources": [secret]},
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = BASE,
    access: Annotated[Path | None, typer.Option(help="Folder with api_keys.json.")] = None,
) -> None:
    """Write the files."""
    for name, document in render(read_access(access)).items():
        write_json(out / name, document)


if __name__ == "__main__":
    typer.run(main)

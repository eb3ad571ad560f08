"""Render the gateway's configuration for a cluster, from the same source as on one machine.

    python -m deploy.gateway [--out OVERLAY --access DIR]

Writes `bootstrap.json`, `routes.json` and `server.json`, which the kustomize base puts into a ConfigMap. They
are committed, and a test compares them with this rendering. With `--access DIR` callers need one of the API
keys in DIR/api_keys.json; choose an overlay as --out then. Only the keys' hashes go into the ConfigMap.

Differences from one machine: a DNS name finds the servers, the certificate is a mounted Secret that Envoy
watches, and other pods reach only the metrics and `/ready` of the admin endpoint, which could also stop
Envoy.
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
"""The autoscaler's limit, which also sets the gateway's limit of calls in flight."""
PORT, METRICS_PORT, ADMIN_PORT = 8443, 9901, 9900
WEB_PORT, INNER_PORT = 8081, 9902
"""Loopback ports inside the pod: of the container `web`, and of the gRPC listener that it calls."""


def render(access: Access, *, folder: Path = FOLDER, certificate: Path = CERTIFICATE) -> dict[str, Json]:
    """Render the files, by name."""
    document = bootstrap(
        folder,
        listen="0.0.0.0",  # the NetworkPolicy decides who can connect
        metrics_listen="0.0.0.0",
        metrics_port=METRICS_PORT,
        admin=address("127.0.0.1", ADMIN_PORT),  # the folder is mounted read-only, so it cannot hold a socket
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

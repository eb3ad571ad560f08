"""The last service of docker-compose.yml: print the URLs of the stack.

Compose starts it after the attestation has passed, so that `docker compose up` ends with these lines.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.errors import FruitstandError
from fruitstand.repository.model_names import repository_names
from fruitstand.repository.versions import read_version, serving_state

PORTS = {
    "GATEWAY_PORT": 8001,
    "HTTP_PORT": 8000,
    "PROMETHEUS_PORT": 9090,
    "GRAFANA_PORT": 3000,
}
"""Variables of docker-compose.yml with their defaults."""
CERTIFICATE = Path("/access/server.crt")
"""If it exists, the gateway speaks TLS."""


def report(
    repository: Path, ports: dict[str, int], listen: str = "127.0.0.1", scheme: str = "http"
) -> list[str]:
    """The lines with all URLs and the next commands to try; `ports` are those of `PORTS`, by name.

    Raises:
        FruitstandError: the repository serves no version, or its manifest cannot be read.
    """
    state = serving_state(repository)
    if state is None:
        raise FruitstandError(f"{repository}: serves no version")
    manifest = read_version(repository, state.version).manifest
    name = repository_names(repository).classifier
    url = f"{listen}:{ports['GATEWAY_PORT']}"
    http = f"{scheme}://{listen}:{ports['HTTP_PORT']}"
    return [
        f"ready: version {state.version} of {name} ({manifest['model_name']}) answers",
        f"ready:   gRPC        {url} (KServe V2, through the gateway)",
        f"ready:   HTTP        {http}/classify (and KServe V2, through the gateway)",
        f"ready:   page        {http}/",
        f"ready:   dashboards  http://127.0.0.1:{ports['GRAFANA_PORT']}/",
        f"ready:   Prometheus  http://127.0.0.1:{ports['PROMETHEUS_PORT']}/",
        f"ready:   next        curl --data-binary @IMAGE {http}/classify",
        f"ready:               or fruitstand classify IMAGE --url {url}",
        "ready:               or open the page and drop an image on it",
    ]


def main(repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("/models")) -> None:
    """Print the lines, then wait for SIGTERM, because a service that exits looks like one that failed."""
    ports = {name: int(os.environ.get(name) or default) for name, default in PORTS.items()}
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    listen = os.environ.get("FRUITSTAND_LISTEN") or "127.0.0.1"
    for line in report(repository, ports, listen, "https" if CERTIFICATE.exists() else "http"):
        print(line, flush=True)
    ended.wait()


if __name__ == "__main__":
    typer.run(main)

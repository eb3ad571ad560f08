"""`fruitstand serve --replicas N --gateway`: several servers behind one gateway."""

import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fruitstand.errors import UsageError
from fruitstand.network.ports import claim_ports
from fruitstand.repository.model_names import distinct_names
from serving.gateway.access import check_exposure
from serving.gateway.envoy import Gateway
from serving.gateway.serve_gateway import LOOK_S, maintain, signals_set
from serving.replicas.replicas import Replicas
from serving.tracing import Tracing
from serving.triton.embedded import PREFIX

GATEWAY_METRICS_PORT = 9901
"""The port that monitoring/targets names."""


def serve_replicas(
    repositories: Sequence[Path],
    *,
    replicas: int,
    listen: str,
    port: int,
    http_port: int,
    metrics_port: int,
    log_path: Path | None,
    access_directory: Path | None,
    insecure: bool,
    tracing: Tracing | None = None,
    **of_each: Any,
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP restarts the replicas one after the other.

    Once the gateway answers, one line of JSON with its URLs goes to stdout.

    Raises:
        UsageError: nothing to serve, a port is taken, or it would listen in clear text.
        ArtefactError: a version, a certificate or a key file cannot be used.
        ServerError: a server or the gateway did not start.
    """
    if replicas < 1:
        raise UsageError(f"--replicas: got {replicas}, allowed a whole number from 1")
    wanted = {
        "--grpc-port": port,
        "--http-port": http_port,
        "the gateway's metrics": GATEWAY_METRICS_PORT if metrics_port else 0,
    }
    port, http_port, gateway_metrics_port = claim_ports(wanted)
    gateway_log = log_path and log_path.with_name(f"{log_path.name}.gateway")
    gateway = Gateway(
        listen=listen,
        port=port,
        http_port=http_port,
        metrics_port=gateway_metrics_port,
        access_directory=access_directory,
        log_path=gateway_log,
        tracing=tracing,
        models=[names.classifier for names in distinct_names(repositories)],
    )
    check_exposure(listen, gateway.access, insecure=insecure)
    servers = Replicas(
        repositories,
        count=replicas,
        metrics_port=metrics_port,
        log_path=log_path,
        announce=lambda: gateway.place(servers.ports),
        tracing=tracing and replace(tracing, share=0.0),  # the gateway samples
        **of_each,
    )
    _run(gateway, servers)


def _run(gateway: Gateway, servers: Replicas) -> None:
    """Run until SIGTERM or SIGINT."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-control-"))
    ended, asked_to_roll = threading.Event(), threading.Event()
    with signals_set({signal.SIGTERM: ended, signal.SIGINT: ended, signal.SIGHUP: asked_to_roll}):
        try:
            servers.start()
            gateway.start(servers.ports)
            _print_ready(gateway, servers, folder)
            while not ended.wait(LOOK_S):
                maintain(gateway)
                if asked_to_roll.is_set():
                    asked_to_roll.clear()
                    servers.roll()
        finally:
            gateway.stop()
            servers.stop()
            shutil.rmtree(folder, ignore_errors=True)


def _print_ready(gateway: Gateway, servers: Replicas, folder: Path) -> None:
    """Write the file for model control, then print one line of JSON."""
    control = folder / "control.json"
    servers.control.write(control)
    urls = {
        "grpc": gateway.url,
        "http": gateway.http_url,
        "metrics": gateway.metrics_url,
        "control": str(control),
        "replicas": [
            {"grpc": one.url, "http": one.http_url, "metrics": one.metrics_url, "pid": one.pid}
            for one in servers.servers
        ],
    }
    print(json.dumps({"ready": True, **urls}), flush=True)

"""`fruitstand serve --replicas N --gateway`: several servers behind one address."""

import json
import logging
import os
import shutil
import signal
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from fruitstand.errors import UsageError
from serving.gateway.access import check_exposure
from serving.gateway.envoy import Gateway
from serving.replicas.replicas import Replicas
from serving.tracing import Tracing
from serving.triton.embedded import PREFIX, claim_ports

log = logging.getLogger("fruitstand.serve")

LOOK_S = 0.25
GATEWAY_METRICS_PORT = 9901
"""Where monitoring/targets looks."""


def serve_replicas(
    repository: Path,
    *,
    replicas: int,
    listen: str,
    port: int,
    http_port: int,
    metrics_port: int,
    config_name: str,
    log_path: Path | None,
    trusted_keys: Path | None,
    access_directory: Path | None,
    insecure: bool,
    tracing: Tracing | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP restarts the replicas one after the other.

    Once the gateway answers, one line of JSON with its URLs goes to stdout.

    Args:
        repository: the model repository.
        replicas: how many servers.
        listen: IP address of the gateway; the servers stay on loopback.
        port: of the gateway; 0 takes a free one.
        http_port: of the gateway too, where HTTP is looked for; 0 takes a free one.
        metrics_port: of the first replica's metrics, further ones 10 apart; 0 takes free ones, for the
            gateway's metrics too.
        config_name: of `configs/<name>.pbtxt`; a model without it takes `config.pbtxt`.
        log_path: of the servers; None is stderr.
        trusted_keys: a folder with public keys, one of which must have signed the served version.
        access_directory: certificates and API keys, see `serving.gateway.access`.
        insecure: listen beyond this machine without TLS.
        tracing: where spans go; None makes none.

    Raises:
        UsageError: nothing to serve, a port is taken, or it would listen in clear text.
        ArtefactError: a version, a certificate or a key file is not as it should be.
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
    )
    check_exposure(listen, gateway.access, insecure=insecure)
    servers = Replicas(
        repository,
        count=replicas,
        metrics_port=metrics_port,
        log_path=log_path,
        config_name=config_name,
        trusted_keys=trusted_keys,
        announce=lambda: gateway.place(servers.ports),
        tracing=tracing and replace(tracing, share=0.0),  # the gateway chooses
    )
    _run(gateway, servers)


def _run(gateway: Gateway, servers: Replicas) -> None:
    """Until a signal ends it."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-control-"))
    ended, asked_to_roll = threading.Event(), threading.Event()
    handlers = {signal.SIGTERM: ended, signal.SIGINT: ended, signal.SIGHUP: asked_to_roll}
    previous = {
        number: signal.signal(number, lambda *_, e=event: e.set()) for number, event in handlers.items()
    }
    try:
        servers.start()
        gateway.start(servers.ports)
        _print_ready(gateway, servers, folder)
        while not ended.wait(LOOK_S):
            if not gateway.is_alive():
                log.warning("the gateway ended and is started again")
                gateway.restart()
            gateway.reload_access()
            if asked_to_roll.is_set():
                asked_to_roll.clear()
                servers.roll()
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C may not leave processes behind
        gateway.stop()
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_ready(gateway: Gateway, servers: Replicas, folder: Path) -> None:
    """One line of JSON; the file of model control is there by then."""
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

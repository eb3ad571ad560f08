"""`fruitstand gateway`: Envoy before servers that somebody else starts, such as containers of one machine."""

import json
import logging
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from fruitstand.errors import UsageError
from serving.gateway.access import check_exposure
from serving.gateway.envoy import Gateway
from serving.tracing import Tracing
from serving.triton.embedded import claim_ports

log = logging.getLogger("fruitstand.gateway")

LOOK_S = 0.25


def serve_gateway(
    replica_ports: Sequence[int],
    *,
    listen: str,
    port: int,
    http_port: int,
    metrics_port: int,
    log_path: Path | None,
    access_directory: Path | None,
    insecure: bool,
    tracing: Tracing | None = None,
) -> None:
    """Run until SIGTERM or SIGINT, then drain; keys and certificates that change are taken over meanwhile.

    Once it listens, one line of JSON with its URLs goes to stdout. It does not wait for the servers: those
    that do not answer get no calls.

    Args:
        replica_ports: gRPC ports of the servers, on loopback.
        listen: IP address to listen on.
        port: to listen on; 0 takes a free one.
        http_port: a second port, where HTTP is looked for; 0 takes a free one.
        metrics_port: of its Prometheus page, on loopback; 0 takes a free one.
        log_path: of Envoy's log and the access log; None is stderr.
        access_directory: certificates and API keys, see `serving.gateway.access`.
        insecure: listen beyond this machine without TLS.
        tracing: where spans go; None makes none.

    Raises:
        UsageError: no server named or one twice, a port is taken, or it would listen in clear text.
        ArtefactError: a certificate or a key file is not as it should be.
        ServerError: Envoy did not start.
    """
    if not replica_ports or len(set(replica_ports)) < len(replica_ports):
        raise UsageError(f"--replica: got {list(replica_ports)}, allowed one or more different ports")
    port, http_port, metrics_port = claim_ports(
        {"--port": port, "--http-port": http_port, "--metrics-port": metrics_port}
    )
    gateway = Gateway(
        listen=listen,
        port=port,
        http_port=http_port,
        metrics_port=metrics_port,
        access_directory=access_directory,
        log_path=log_path,
        tracing=tracing,
    )
    check_exposure(listen, gateway.access, insecure=insecure)
    ended = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        gateway.start(dict.fromkeys(replica_ports, True), needs_replica=False)
        urls = {"grpc": gateway.url, "http": gateway.http_url, "metrics": gateway.metrics_url}
        print(json.dumps({"ready": True, **urls}), flush=True)
        while not ended.wait(LOOK_S):
            if not gateway.is_alive():
                log.warning("the gateway ended and is started again")
                gateway.restart()
            gateway.reload_access()
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C may not leave Envoy behind
        gateway.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)

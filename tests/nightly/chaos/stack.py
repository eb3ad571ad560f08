"""The product as a user starts it, `fruitstand serve --gateway`, with ways to hurt it."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.errors import ServerError
from fruitstand.machine.memory import process_tree, resident_mib
from fruitstand.network.connections import metric_total
from fruitstand.network.tls import Tls
from tests.nightly.chaos.commands import fruitstand
from tests.nightly.chaos.counters import answers_by_code, fetch

STOP_TIMEOUT_S = 90
BEGINNING = "fruitstand-serve-"
"""Of the names of everything that a server writes outside its log."""
CANARY_INTERVAL_S = 2.0
"""Between the supervisor's own inferences on each replica."""
START_CALLS = 32
"""At most, before a replica counts as ready: golden images among them."""


class Stack:
    """Replicas behind a gateway, on free ports."""

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *,
        replicas: int = 3,
        access: Path | None = None,
        flags: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it and wait until it is ready.

        Args:
            repository: of the models.
            folder: for the logs.
            replicas: how many.
            access: certificates and API keys of the gateway.
            flags: further ones of `fruitstand serve`.
            environment: variables that it gets besides ours.

        Raises:
            ServerError: it ended instead.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.secrets: list[str] = []
        """What may stand in no log."""
        self.answered, self.given_up = 0, 0
        """What its callers know: answers they got, and calls they gave up or lost."""
        self._errors = (folder / "serve.log").open("ab")
        command = fruitstand(
            "serve", "--gateway", f"--replicas={replicas}", f"--repository={repository}", "--grpc-port=0",
            "--http-port=0", "--metrics-port=0", f"--log={folder / 'triton.log'}",
            *([f"--access={access}"] if access else []), *flags,
        )  # fmt: skip
        self._started_s = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.close()
            raise ServerError(f"'fruitstand serve --gateway' ended; see {folder / 'serve.log'}")
        self.ready_s = time.monotonic() - self._started_s
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["grpc"]
        self.control = Path(self.ready["control"])
        self.replicas: list[str] = [one["grpc"] for one in self.ready["replicas"]]
        self.tls: Tls | None = None
        self.api_key: str | None = None

    @property
    def pid(self) -> int:
        """Of `fruitstand serve` itself."""
        return self._process.pid

    def replica_pid(self, number: int) -> int:
        """The process of a replica now; it is another one after a restart.

        Raises:
            ServerError: it does not run at this moment.
        """
        port = self.replicas[number].rpartition(":")[2]
        return self._child(b"/tritonserver", f"--grpc-port={port}")

    def gateway_pid(self) -> int:
        """The process of Envoy."""
        return self._child(b"/envoy", "--config-path")

    def _child(self, program: bytes, argument: str) -> int:
        for pid in process_tree(self.pid):
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if arguments[0].endswith(program) and argument.encode() in arguments:
                return pid
        raise ServerError(f"no {program.decode()} with {argument} runs")

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a replica."""
        os.kill(self.replica_pid(number), what)

    def roll(self) -> None:
        """Ask for a rolling restart; returns at once."""
        self._process.send_signal(signal.SIGHUP)

    def page(self) -> str:
        """The gateway's metrics."""
        return fetch(self.ready["metrics"])

    def counter(self, name: str) -> float:
        """One of the metrics of the gateway's cluster; 0 before it is first counted."""
        return metric_total(self.page(), f"envoy_cluster_{name}", envoy_cluster_name="triton")

    def executed(self, name: str = "nv_inference_request_success", model: str = FRUIT_CLASSIFIER) -> float:
        """A counter of Triton's, over all replicas; one that was restarted began again."""
        return sum(metric_total(fetch(one["metrics"]), name, model=model) for one in self.ready["replicas"])

    def wait_healthy(self, count: int, timeout_s: float) -> float:
        """Wait until the gateway has so many healthy replicas; how long it took, seconds.

        Raises:
            ServerError: not in time.
        """
        started = time.monotonic()
        while self.counter("membership_healthy") != count:
            if time.monotonic() - started > timeout_s:
                raise ServerError(f"not {count} healthy replicas within {timeout_s:.0f} s")
            time.sleep(0.05)
        return time.monotonic() - started

    def rss_mib(self) -> float:
        """Memory of all its processes, MiB."""
        return resident_mib(self.pid)

    def pids(self) -> list[int]:
        """The command and everything below it."""
        return process_tree(self.pid)

    def audit(self) -> dict[str, Any]:
        """What its callers counted, beside what it counted itself."""
        codes = answers_by_code(self.page())
        each = START_CALLS + (time.monotonic() - self._started_s) / CANARY_INTERVAL_S
        return {
            "callers_answered": self.answered,
            "callers_gave_up": self.given_up,
            "gateway_answered": codes.get(0, 0),
            "gateway_by_code": codes,
            "gateway_repeated": int(self.counter("upstream_rq_retry")),
            "triton_answered": int(self.executed()),
            "canaries_at_most": int(len(self.replicas) * each),
            "restarts": self.log().count("is started again"),
        }

    def log(self) -> str:
        """Everything that was logged so far."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log*")))

    def stop(self) -> dict[str, list[str]]:
        """End it as an operator does; what is left of it, by kind. Empty lists are the good case."""
        pids = self.pids()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.communicate()
        self._errors.close()
        prefix = f"{BEGINNING}{self._process.pid}-"
        return {
            "processes": [str(pid) for pid in pids if _runs(pid)],
            "shared_memory": [path.name for path in Path("/dev/shm").glob(f"{prefix}*")],
            "files": [path.name for path in Path(tempfile.gettempdir()).glob(f"{prefix}*")],
        }


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

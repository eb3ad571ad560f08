"""A real Prometheus with the project's rules, before a stack: which alerts fire, and when they resolve."""

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from fruitstand.errors import ServerError
from fruitstand.network.connections import fetch_page
from fruitstand.network.ports import free_ports
from tests.nightly.chaos.stack import Stack

MONITORING = Path(__file__).parents[3] / "monitoring"
START_S = 60.0


class Monitor:
    """Prometheus's alerts, by name."""

    def __init__(self, url: str) -> None:
        self._url = url

    def firing(self) -> set[str]:
        """What fires now."""
        alerts = json.loads(fetch_page(f"{self._url}/api/v1/alerts", timeout_s=5))["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def wait(self, name: str, *, fires: bool, within_s: float) -> float | None:
        """Until an alert fires, or does no longer; how long that took, seconds, None: longer."""
        started = time.monotonic()
        while (name in self.firing()) is not fires:
            if time.monotonic() - started > within_s:
                return None
            time.sleep(1)
        return round(time.monotonic() - started, 1)


@contextlib.contextmanager
def prometheus(stack: Stack, folder: Path) -> Iterator[Monitor]:
    """Scrape the stack with the project's configuration, with its targets and every second.

    Raises:
        ServerError: it is not installed, or did not start.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise ServerError("prometheus is not installed; 'make system' as root installs it on Debian")
    config = shutil.copytree(MONITORING, folder / "monitoring", ignore=shutil.ignore_patterns("grafana"))
    _write_config(stack, config)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [program, f"--config.file={config / 'prometheus.yml'}", f"--web.listen-address={address}",
               f"--storage.tsdb.path={folder / 'tsdb'}", "--log.level=warn"]  # fmt: skip
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not _is_ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"prometheus did not start; see {folder / 'prometheus.log'}")
            time.sleep(0.2)
        yield Monitor(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)


def _write_config(stack: Stack, folder: Path) -> None:
    """Every second, and the stack's own addresses for targets."""
    config = folder / "prometheus.yml"
    config.write_text(re.sub(r"(scrape|evaluation)_interval: \d+s", r"\1_interval: 1s", config.read_text()))
    replicas = [one["metrics"] for one in stack.ready["replicas"]]
    for job, urls in (("triton", replicas), ("envoy", [stack.ready["metrics"]])):
        targets = [{"targets": [_host_port(url) for url in urls]}]
        (folder / "targets" / f"{job}.yml").write_text(json.dumps(targets))  # JSON is YAML


def _host_port(url: str) -> str:
    return url.removeprefix("http://").partition("/")[0]


def _is_ready(address: str) -> bool:
    try:
        fetch_page(f"http://{address}/-/ready", timeout_s=2)
    except OSError:
        return False
    return True

"""The product as a user starts it: `fruitstand serve --replicas 3 --gateway`, with ways to hurt it."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from fruitstand.errors import ServerError

STOP_TIMEOUT_S = 90
BEGINNING = "fruitstand-serve-"
"""Of the names of everything that a server writes outside its log."""


class Stack:
    """Three replicas behind a gateway, on free ports."""

    def __init__(self, repository: Path, log_directory: Path, *, replicas: int = 3) -> None:
        """Start it and wait until it is ready.

        Raises:
            ServerError: it ended instead.
        """
        log_directory.mkdir(parents=True, exist_ok=True)
        self.log_directory = log_directory
        self._errors = (log_directory / "serve.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fruitstand", "serve", "--gateway", f"--replicas={replicas}",
             f"--repository={repository}", "--grpc-port=0", "--metrics-port=0",
             f"--log={log_directory / 'triton.log'}"],
            stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.close()
            raise ServerError(f"'fruitstand serve --gateway' ended; see {log_directory / 'serve.log'}")
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["grpc"]
        self.replicas: list[str] = [one["grpc"] for one in self.ready["replicas"]]

    def pid(self, number: int) -> int:
        """The process of a replica now; it is another one after a restart."""
        port = self.replicas[number].rpartition(":")[2]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if arguments[0].endswith(b"/tritonserver") and f"--grpc-port={port}".encode() in arguments:
                return int(path.parent.name)
        raise ServerError(f"replica {number} does not run")

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a replica."""
        os.kill(self.pid(number), what)

    def roll(self) -> None:
        """Ask for a rolling restart; returns at once."""
        self._process.send_signal(signal.SIGHUP)

    def counter(self, name: str) -> float:
        """One of Envoy's statistics; 0 before it is first counted."""
        address = f"{self.ready['admin']}/stats?format=json&filter=^{re.escape(name)}$"
        with urllib.request.urlopen(address, timeout=5) as answer:
            stats = json.load(answer)["stats"]
        return float(stats[0].get("value", 0)) if stats else 0.0

    def wait_healthy(self, count: int, timeout_s: float) -> float:
        """Wait until the gateway has so many healthy replicas; how long it took, seconds.

        Raises:
            ServerError: not in time.
        """
        started = time.monotonic()
        while self.counter("cluster.triton.membership_healthy") != count:
            if time.monotonic() - started > timeout_s:
                raise ServerError(f"not {count} healthy replicas within {timeout_s:.0f} s")
            time.sleep(0.1)
        return time.monotonic() - started

    def rss_mib(self) -> float:
        """Memory of all its processes, MiB."""
        page_mib = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids()) * page_mib

    def pids(self) -> list[int]:
        """The command and everything below it."""
        found, unseen = [], [self._process.pid]
        while unseen:
            pid = unseen.pop()
            try:
                children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
            except OSError:
                continue
            found.append(pid)
            unseen += [int(child) for group in children for child in group]
        return found

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

"""A subject that runs: start, stop, look at its processes, its memory and what it computed."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.ledger import RIGHT, Caller, Load
from benchmarks.faults.subjects import SECOND, Subject
from benchmarks.in_process import served_version
from benchmarks.peers import processes
from benchmarks.peers.catalogue import SERVERS
from benchmarks.peers.measure import SETTINGS_NAME, Case, command, variables, wait_for_answer
from fruitstand.artefacts import read_json, write_json
from fruitstand.contract import FRUIT_RESNET
from fruitstand.errors import ServerError
from fruitstand.network.connections import fetch_page, metric_total
from fruitstand.network.ports import free_ports
from fruitstand.repository.versions import MANIFEST_NAME, published_versions

EXIT_S = 40.0
NICENESS = 5
STEADY_SHARE = 0.3
"""Of the capacity: the load under which something is broken."""
SERVER_PROGRAM = "tritonserver"
"""The worker of our stack."""
COMPUTED = "nv_inference_count"


class Running:
    """One subject on one port, started as often as its faults need."""

    def __init__(
        self,
        subject: Subject,
        repository: Path,
        model: dict[str, Any],
        images: Sequence[bytes],
        scratch: Path,
    ) -> None:
        """Start it, and wait for its first answer.

        Args:
            subject: what to start.
            repository: with the model; our stack serves a copy with a second version.
            model: the peers' settings of it: file, engine, labels, preprocessing.
            images: good ones.
            scratch: an empty folder.

        Raises:
            FruitstandError: it does not start.
        """
        self.subject, self._source, self._model, self._scratch = subject, repository, model, scratch
        self._port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self._port}"
        self.caller = Caller(subject, self.url, images)
        self.num_starts = 0
        self.first, self.second = "1", "2"
        """Versions of the models, as answers name them."""
        self.start()

    def start(self, *, second: bool = False) -> None:
        """Start it, with the first model or with the second; a start that fails is tried once more.

        Raises:
            FruitstandError: no answer comes.
        """
        self.num_starts += 1
        try:
            self._start(second)
        except ServerError:
            self.stop()
            try:
                self._start(second)
            except ServerError:
                self.stop()
                raise

    def _start(self, second: bool) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=self._scratch))
        self._mark = secrets.token_hex(8)
        self.repository, self._log = self._folder / "repository", self._folder / "log"
        started = time.monotonic()
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                ["nice", "-n", str(NICENESS), *self._command()],  # the generator comes first
                cwd=self._folder if self.subject.is_ours else SERVERS,
                env=self._environment(second),
                stdout=output,
                stderr=output,
            )
        wait_for_answer(self.caller.target, started, self._mark, self._log)

    def _command(self) -> list[str]:
        if not self.subject.is_ours:
            return command(self.subject.peer, self._port)
        shutil.copytree(self._source, self.repository)
        served = served_version(self.repository)
        twin = served.with_name(str(max(published_versions(self.repository)) + 1))
        shutil.copytree(served, twin)
        write_json(twin / MANIFEST_NAME, {**read_json(twin / MANIFEST_NAME), "version": int(twin.name)})
        self.first, self.second = served.name, twin.name
        filled = {
            "REPOSITORY": str(self.repository),
            "PORT": str(self._port),
            "LOG": str(self._folder / "triton.log"),
        }
        return [filled.get(word, word) for word in self.subject.peer.command]

    def _environment(self, second: bool) -> dict[str, str]:
        if self.subject.is_ours:
            return {**os.environ, processes.MARK: self._mark}
        (self._folder / "journal").mkdir()
        settings = {**self.subject.settings, **self._model, "journal": str(self._folder / "journal")}
        for key in ("queue", "timeout_s"):
            if isinstance(settings[key], str):  # what it does not offer
                del settings[key]
        case = Case(name=self.subject.name, peer=self.subject.peer, settings=settings)
        self._variables = variables(case, self._mark, self._port, str(self._folder))
        if second:
            self.write_settings(second=True)
        return self._variables

    def write_settings(self, *, second: bool) -> None:
        """Say which model a peer's workers load from now on."""
        path = self._folder / SETTINGS_NAME
        labels = [label + SECOND * second for label in self._model["labels"]]
        write_json(path, {**read_json(path), "labels": labels})

    def ready(self) -> dict[str, Any]:
        """The line with which our stack says that it is ready."""
        for line in self._log.read_text(errors="replace").splitlines():
            if line.startswith('{"ready"'):
                found: dict[str, Any] = json.loads(line)
                return found
        raise ServerError(f"{self.subject.name} never said that it is ready")

    def port(self, number: int) -> int:
        """Another port of a peer, 2 to 5."""
        return int(self._variables[f"PORT_{number}"])

    def signal(self, number: signal.Signals) -> None:
        """Send it to the process that was started."""
        self._process.send_signal(number)

    def stop(self) -> float:
        """End it as a container's runtime does: SIGTERM, then SIGKILL for what its first process leaves.

        Returns:
            Seconds until the first process had ended.
        """
        started = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_S)
        took = time.monotonic() - started
        processes.stop(self._mark, patience_s=0.0)
        self._process.kill()
        self._process.wait()
        return round(took, 1)

    def restart(self) -> None:
        """From nothing, with the first model.

        Raises:
            FruitstandError: it does not start.
        """
        self.stop()
        self.start()

    def answers(self, within_s: float = 10.0) -> bool:
        """Whether an image is answered right."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            (record,) = asyncio.run(self.caller.at_once([0]))
            if record.verdict == RIGHT and record.version == self.first:
                return True
            time.sleep(0.2)
        return False

    def workers(self) -> list[int]:
        """Process ids of those that hold the model now, at least one.

        Raises:
            ServerError: there is none.
        """
        living = processes.marked(self._mark)
        if self.subject.is_ours:
            found = [one.pid for one in living if one.name() == SERVER_PROGRAM]
        else:
            named = {int(path.stem) for path in (self._folder / "journal").glob("*.worker")}
            found = [one.pid for one in living if one.pid in named]
        if not found:
            raise ServerError(f"{self.subject.name}: no worker holds the model")
        return found

    def computed(self) -> int:
        """Images that a model has computed since the start, answered or not."""
        if not self.subject.is_ours:
            path = self._folder / "journal" / "computed"
            return path.stat().st_size if path.exists() else 0
        ready = self.ready()
        pages = [one["metrics"] for one in ready.get("replicas", [ready])]
        return int(
            sum(
                metric_total(str(fetch_page(url, timeout_s=5), "utf-8"), COMPUTED, model=FRUIT_RESNET)
                for url in pages
            )
        )

    def memory_mib(self) -> float:
        """Of all its processes."""
        return processes.memory_mib(self._mark)

    def peak_mib(self) -> float:
        """Sum of the peaks of its living processes."""
        total = 0.0
        for process in processes.marked(self._mark):
            with contextlib.suppress(OSError, psutil.Error):
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        total += int(line.split()[1]) / 1024
        return round(total, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One fault on one subject."""

    text: str
    """For the table."""
    numbers: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A running subject, its capacity, and the steady load."""

    running: Running
    capacity: float
    """Calls/s, measured before anything was broken; 0 where no fault needs it."""
    steady_rate: float
    """Calls/s of a load that it can bear."""
    soak_s: float

    @property
    def caller(self) -> Caller:
        """With good images."""
        return self.running.caller

    def steady(self) -> Load:
        """A load that it can bear."""
        return Load(self.caller, rate=self.steady_rate)

"""Several servers on one machine, each kept by a thread: watched with real inferences, restarted."""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from fruitstand.contract import FRUIT_CLASSIFIER, IMAGE
from fruitstand.errors import FruitstandError
from fruitstand.images.synthetic import canary_image
from fruitstand.machine.memory import memory_budget_mib, resident_mib
from fruitstand.machine.threads import thread_budget
from fruitstand.network.connections import open_triton
from fruitstand.repository.model_control import ModelControl
from serving.triton.embedded import CONTROL_HEADER, EmbeddedServer

log = logging.getLogger("fruitstand.replicas")

LOOK_S = 0.1
CANARY_INTERVAL_S = 2.0
CANARY_DEADLINE_S = 10.0
HUNG_AFTER_S = 20.0
"""Without an answer to a canary; longer than any call may wait in the queues of an overloaded server."""
ANSWERS = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
"""Refusals of a server that works: it is full, not ill."""
DRAIN_S = 5.0
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
"""Between attempts to start a server that does not."""
MEMORY_SHARE = 0.8
"""Of the machine's memory, what all replicas may have; one that has more than its part is restarted."""


class Canary:
    """Asks a server for an answer again and again, without waiting for it."""

    def __init__(self, server: EmbeddedServer) -> None:
        """Prepare a connection; the server answers already."""
        self._server = server
        self._client = open_triton(server.url)
        self._asked_s = self.answered_s = time.monotonic()

    def ask(self) -> None:
        """Send a canary image when it is time; the answer is noted when it comes."""
        now = time.monotonic()
        if now - self._asked_s < CANARY_INTERVAL_S:
            return
        self._asked_s = now
        encoded = np.frombuffer(canary_image(), np.uint8)[None]
        tensor = triton.InferInput(IMAGE, list(encoded.shape), "UINT8")
        tensor.set_data_from_numpy(encoded)
        self._client.async_infer(
            FRUIT_CLASSIFIER, [tensor], callback=self._note, client_timeout=CANARY_DEADLINE_S
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _note(self, result: Any, error: Any) -> None:
        refused = error is not None and any(status in str(error.status()) for status in ANSWERS)
        if (error is None or refused) and self._server.is_alive():
            self.answered_s = time.monotonic()


@dataclass(frozen=True, slots=True)
class _End:
    """Why a server is stopped."""

    reason: str
    at_once: bool = False
    """It answers nobody any more: there is nothing to wait for."""


class Replica:
    """One server and the thread that keeps it.

    The thread lives as long as the replica: when it is gone, the kernel ends the process it started.
    """

    def __init__(
        self, name: str, server: EmbeddedServer, *, max_memory_mib: float, announce: Callable[[], None]
    ) -> None:
        """Nothing is started yet.

        Args:
            name: for the log.
            server: to be kept.
            max_memory_mib: resident; with more it is restarted.
            announce: called when `taking` has changed.
        """
        self.name, self.server = name, server
        self.taking = True
        """Whether it is to be given new calls."""
        self._max_memory_mib, self._announce = max_memory_mib, announce
        self._failure: FruitstandError | OSError | None = None
        self._tried, self._ready = threading.Event(), threading.Event()
        self._ending, self._asked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name)

    def start(self) -> None:
        """Start the thread, and wait until its server has answered.

        Raises:
            FruitstandError: it did not start.
            OSError: its files could not be written.
        """
        self._thread.start()
        self._tried.wait()
        if self._failure is not None:
            raise self._failure

    def restart(self) -> bool:
        """Take no new calls, finish those under way, start again; whether it came back."""
        self._ready.clear()
        self._tried.clear()
        self._asked.set()
        while not self._ready.wait(LOOK_S):
            if self._ending.is_set() or (self._tried.is_set() and self._failure is not None):
                return False
        return True

    def end(self) -> None:
        """Ask it to end."""
        self._ending.set()

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        pause_s, started = FIRST_PAUSE_S, False
        while not self._ending.is_set():
            try:
                self.server.start()
            except (FruitstandError, OSError) as exc:
                self._failure = exc
                self._tried.set()
                if not started:
                    return
                log.warning("%s did not start, it is tried again: %s", self.name, exc)
                self._ending.wait(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                continue
            log.info(
                "%s at %s is ready, process %s of %d",
                self.name, self.server.url, self.server.pid, os.getpid(),
            )  # fmt: skip
            pause_s, started, self._failure = FIRST_PAUSE_S, True, None
            self._asked.clear()
            self._take(True)
            self._tried.set()
            self._ready.set()
            end = self._watch()
            if end is not None:
                log.warning("%s %s and is started again", self.name, end.reason)
                if not end.at_once:
                    self._take(False)
                    self._ending.wait(DRAIN_S)
            self.server.stop(at_once=end is not None and end.at_once)

    def _take(self, taking: bool) -> None:
        if self.taking != taking:
            self.taking = taking
            self._announce()

    def _watch(self) -> _End | None:
        """Until it has to be stopped, and why; None when all ends."""
        canary = Canary(self.server)
        looked_s = awake_s = time.monotonic()
        try:
            while not self._ending.wait(LOOK_S):
                if not self.server.is_alive():
                    return _End("ended", at_once=True)
                if self._asked.is_set():
                    return _End("was asked to")
                asleep_s, awake_s = time.monotonic() - awake_s - LOOK_S, time.monotonic()
                if asleep_s > 1:  # this process was stopped, and heard no answer meanwhile
                    canary.answered_s += asleep_s
                if awake_s - canary.answered_s > HUNG_AFTER_S:
                    return _End("hangs", at_once=True)
                canary.ask()
                if time.monotonic() - looked_s > CANARY_INTERVAL_S:
                    looked_s = time.monotonic()
                    if self.server.pid and resident_mib(self.server.pid) > self._max_memory_mib:
                        return _End(f"has more than {self._max_memory_mib:.0f} MiB of memory")
        finally:
            canary.close()
        return None


class Replicas:
    """All of them; the machine's threads and memory are divided among them."""

    def __init__(
        self,
        repository: Path,
        *,
        count: int,
        metrics_port: int,
        log_path: Path | None,
        announce: Callable[[], None],
        **of_each: Any,
    ) -> None:
        """Choose ports; nothing is started yet.

        Args:
            repository: the model repository.
            count: how many servers.
            metrics_port: of the first; the next ones take the ports ten, twenty... further. 0: free ones.
            log_path: of the first; the next ones have a number behind the name.
            announce: tells the gateway which replicas take calls, after `start`.
            of_each: further arguments of `EmbeddedServer`.

        Raises:
            UsageError: nothing to serve, or a port is taken.
            ArtefactError: the version to be served was altered, or is not signed as asked.
        """
        # Of this process and its servers, and of who may read its files: nobody else controls a model.
        self._control_key = secrets.token_hex(16)
        self._ending, self._telling = threading.Event(), threading.Lock()
        self._rolling: threading.Thread | None = None

        def announce_one_by_one() -> None:
            with self._telling:  # what was true first is not told last
                try:
                    announce()
                except OSError as exc:  # a keeper's thread may not end: its server would end with it
                    log.error("the gateway could not be told who takes calls: %s", exc)

        self._all = [
            Replica(
                f"replica {number}",
                EmbeddedServer(
                    repository,
                    metrics_port=metrics_port and metrics_port + 10 * number,
                    log_path=log_path
                    and log_path.with_name(f"{log_path.name}.{number}" if number else log_path.name),
                    threads=max(1, thread_budget() // count),
                    control_key=self._control_key,
                    **of_each,
                ),
                max_memory_mib=MEMORY_SHARE * memory_budget_mib() / count,
                announce=announce_one_by_one,
            )
            for number in range(count)
        ]

    @property
    def servers(self) -> list[EmbeddedServer]:
        """The servers."""
        return [replica.server for replica in self._all]

    @property
    def ports(self) -> dict[int, bool]:
        """The gRPC port of each, and whether it takes new calls."""
        return {replica.server.grpc_port: replica.taking for replica in self._all}

    @property
    def control(self) -> ModelControl:
        """What it takes to change the served version."""
        header = f"triton-grpc-protocol-{CONTROL_HEADER}"
        return ModelControl(
            tuple(server.url for server in self.servers),
            tuple(server.metrics_url for server in self.servers),
            {header: self._control_key},
        )

    def start(self) -> None:
        """Start all; each has answered before the next one starts.

        Raises:
            FruitstandError: one did not start.
        """
        for replica in self._all:
            replica.start()

    def roll(self) -> None:
        """Restart one after the other without losing a call, in the background."""
        if self._rolling is None or not self._rolling.is_alive():
            self._rolling = threading.Thread(target=self._roll, name="roll")
            self._rolling.start()

    def _roll(self) -> None:
        for replica in self._all:
            if not replica.restart():
                if not self._ending.is_set():
                    log.warning("%s did not come back: the others are left as they are", replica.name)
                return
            self._ending.wait(2)  # until the gateway has seen that it is well

    def stop(self) -> None:
        """End all."""
        self._ending.set()
        for replica in self._all:
            replica.end()
        if self._rolling is not None:
            self._rolling.join()
        for replica in self._all:
            replica.join()

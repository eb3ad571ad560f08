"""Several servers on one machine, each supervised by a thread that sends canary requests and restarts it."""

import functools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from fruitstand.contract import IMAGE
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
"""Seconds without an answer to a canary; longer than any wait in the queues of an overloaded server."""
ANSWERS = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
"""Refusals of a healthy server under overload."""
DRAIN_S = 5.0
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
"""Seconds between attempts to start a server that fails to start; doubled each time."""
MEMORY_SHARE = 0.8
"""Share of the machine's memory for all replicas together; a replica above its part is restarted."""


class Canary:
    """Sends a server a canary image every two seconds, without blocking for the answer."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._client = open_triton(server.url)
        self._asked_s = now = time.monotonic()
        self._answered_s = {names.classifier: now for names in server.names}

    def ask(self) -> None:
        """Send a canary image if one is due; a callback records the time of the answer."""
        now = time.monotonic()
        if now - self._asked_s < CANARY_INTERVAL_S:
            return
        self._asked_s = now
        encoded = np.frombuffer(canary_image(), np.uint8)[None]
        tensor = triton.InferInput(IMAGE, list(encoded.shape), "UINT8")
        tensor.set_data_from_numpy(encoded)
        for names in self._server.names:
            note = functools.partial(self._note, names.classifier)
            self._client.async_infer(
                names.classifier, [tensor], callback=note, client_timeout=CANARY_DEADLINE_S
            )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def silent_s(self) -> float:
        """How long the classifier that answered least recently has been silent, seconds."""
        return time.monotonic() - min(self._answered_s.values())

    def forgive(self, seconds: float) -> None:
        """Leave out a time in which this process could hear no answer."""
        self._answered_s = {model: at_s + seconds for model, at_s in self._answered_s.items()}

    def _note(self, model: str, result: Any, error: Any) -> None:
        refused = error is not None and any(status in str(error.status()) for status in ANSWERS)
        if (error is None or refused) and self._server.is_alive():
            self._answered_s[model] = time.monotonic()


@dataclass(frozen=True, slots=True)
class _End:
    """Why a server is stopped."""

    reason: str
    at_once: bool = False
    """Whether to skip draining, because the server no longer answers."""


class Replica:
    """One server and the thread that supervises it.

    The kernel kills the server's process when the thread that started it ends.
    """

    def __init__(
        self, name: str, server: EmbeddedServer, *, max_memory_mib: float, announce: Callable[[], None]
    ) -> None:
        self.name, self.server = name, server
        self.taking = True
        """Whether the server takes new calls."""
        self._max_memory_mib, self._announce = max_memory_mib, announce
        self._failure: FruitstandError | OSError | None = None
        self._tried, self._ready = threading.Event(), threading.Event()
        self._ending, self._asked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name)

    def start(self) -> None:
        """Start the thread, and wait until its server has answered.

        Raises:
            FruitstandError: the server did not start.
            OSError: the server's files could not be written.
        """
        self._thread.start()
        self._tried.wait()
        if self._failure is not None:
            raise self._failure

    def restart(self) -> bool:
        """Drain the server and start it again; returns whether it came back."""
        self._ready.clear()
        self._tried.clear()
        self._asked.set()
        while not self._ready.wait(LOOK_S):
            if self._ending.is_set() or (self._tried.is_set() and self._failure is not None):
                return False
        return True

    def end(self) -> None:
        """Ask the thread to end."""
        self._ending.set()

    def join(self) -> None:
        """Wait until the thread has ended."""
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
                log.warning("%s did not start and is started again: %s", self.name, exc)
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
        """Wait until the server has to be restarted, and return why; None when the replica ends."""
        canary = Canary(self.server)
        looked_s = awake_s = time.monotonic()
        try:
            while not self._ending.wait(LOOK_S):
                if not self.server.is_alive():
                    return _End("ended", at_once=True)
                if self._asked.is_set():
                    return _End("was asked to")
                asleep_s, awake_s = time.monotonic() - awake_s - LOOK_S, time.monotonic()
                if asleep_s > 1:  # this process was suspended and could not record answers
                    canary.forgive(asleep_s)
                if canary.silent_s > HUNG_AFTER_S:
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
    """All replicas; they share the machine's threads and memory equally."""

    def __init__(
        self,
        repositories: Sequence[Path],
        *,
        count: int,
        metrics_port: int,
        log_path: Path | None,
        announce: Callable[[], None],
        **of_each: Any,
    ) -> None:
        """Choose ports; `start` starts the servers.

        Args:
            repositories: the model repositories.
            count: number of servers.
            metrics_port: port of the first server's metrics, the next ones 10 apart; 0 takes free ones.
            log_path: log of the first server; the others append a number to the name.
            announce: tells the gateway which replicas take calls; used after `start`.
            of_each: further arguments of `EmbeddedServer`.

        Raises:
            UsageError: nothing to serve, or a port is taken.
            ArtefactError: the served version was altered, or lacks the required signature.
        """
        # Only this process, its servers and who may read its files can control models.
        self._control_key = secrets.token_hex(16)
        self._ending, self._telling = threading.Event(), threading.Lock()
        self._rolling: threading.Thread | None = None

        def announce_one_by_one() -> None:
            with self._telling:  # in order, so that the gateway ends with the latest state
                try:
                    announce()
                except OSError as exc:  # raising would end the replica's thread, and its server with it
                    log.error("cannot tell the gateway which replicas take calls: %s", exc)

        self._all = [
            Replica(
                f"replica {number}",
                EmbeddedServer(
                    *repositories,
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
        """The server of each replica."""
        return [replica.server for replica in self._all]

    @property
    def ports(self) -> dict[int, bool]:
        """The gRPC port of each, and whether it takes new calls."""
        return {replica.server.grpc_port: replica.taking for replica in self._all}

    @property
    def control(self) -> ModelControl:
        """URLs and key for changing the served version."""
        header = f"triton-grpc-protocol-{CONTROL_HEADER}"
        return ModelControl(
            tuple(server.url for server in self.servers),
            tuple(server.metrics_url for server in self.servers),
            {header: self._control_key},
        )

    def start(self) -> None:
        """Start the replicas one after the other; each has to answer before the next one starts.

        Raises:
            FruitstandError: a server did not start.
        """
        for replica in self._all:
            replica.start()

    def roll(self) -> None:
        """Restart the replicas one after the other in the background, without losing a call."""
        if self._rolling is None or not self._rolling.is_alive():
            self._rolling = threading.Thread(target=self._roll, name="roll")
            self._rolling.start()

    def _roll(self) -> None:
        for replica in self._all:
            if not replica.restart():
                if not self._ending.is_set():
                    log.warning("%s did not come back; the others are not restarted", replica.name)
                return
            self._ending.wait(2)  # until the gateway's health checks have passed

    def stop(self) -> None:
        """Stop all replicas."""
        self._ending.set()
        for replica in self._all:
            replica.end()
        if self._rolling is not None:
            self._rolling.join()
        for replica in self._all:
            replica.join()

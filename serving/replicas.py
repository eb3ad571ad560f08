"""Several servers on one machine: started in turn, watched with real inferences, restarted when they fail."""

import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from fruitstand.contract import FRUIT_CLASSIFIER, IMAGE
from fruitstand.errors import ServerError
from fruitstand.sample_images import canary_image
from fruitstand.threads import thread_budget
from serving.embedded import EmbeddedServer

log = logging.getLogger("fruitstand.replicas")

CANARY_INTERVAL_S = 2.0
CANARY_DEADLINE_S = 10.0
HUNG_AFTER_S = 20.0
"""Without an answer to a canary; longer than any call may wait in the queues of an overloaded server."""
ANSWERS = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
"""Refusals of a server that works: it is full, not ill."""
DRAIN_S = 5.0


@dataclass
class Replica:
    """One server and what its canary said last."""

    server: EmbeddedServer
    client: triton.InferenceServerClient | None = None
    asked_s: float = 0.0
    answered_s: float = 0.0
    taking: bool = True

    def ask(self) -> None:
        """Send a canary image; the answer is noted when it comes."""
        now = time.monotonic()
        if now - self.asked_s < CANARY_INTERVAL_S:
            return
        if self.client is None:
            channel = [("grpc.use_local_subchannel_pool", 1)]
            self.client = triton.InferenceServerClient(self.server.url, channel_args=channel)
        self.asked_s = now
        encoded = np.frombuffer(canary_image(), np.uint8)[None]
        tensor = triton.InferInput(IMAGE, list(encoded.shape), "UINT8")
        tensor.set_data_from_numpy(encoded)
        client = self.client

        def note(result: Any, error: Any) -> None:
            refused = error is not None and any(status in str(error.status()) for status in ANSWERS)
            if client is self.client and (error is None or refused) and self.server.is_alive():
                self.answered_s = time.monotonic()

        client.async_infer(FRUIT_CLASSIFIER, [tensor], callback=note, client_timeout=CANARY_DEADLINE_S)

    def is_well(self) -> bool:
        """Whether its process runs and answers canaries."""
        return self.server.is_alive() and time.monotonic() - self.answered_s < HUNG_AFTER_S

    def forget_client(self) -> None:
        """Close the canary's connection."""
        if self.client is not None:
            self.client.close()
            self.client = None


class Replicas:
    """All of them; the machine's threads are divided among them."""

    def __init__(
        self, repository: Path, *, count: int, metrics_port: int, log_path: Path | None, **of_each: Any
    ) -> None:
        """Choose ports; nothing is started yet.

        Args:
            repository: the model repository.
            count: how many servers.
            metrics_port: of the first; the next ones take the ports ten, twenty... further. 0: free ones.
            log_path: of the first; the next ones have a number behind the name.
            of_each: further arguments of `EmbeddedServer`.

        Raises:
            UsageError: nothing to serve, or a port is taken.
            ArtefactError: the version to be served was altered, or is not signed as asked.
        """
        # Known to this process and its servers alone, so nobody controls a model behind the gateway's back.
        key = secrets.token_hex(16)
        self._replicas = [
            Replica(
                EmbeddedServer(
                    repository,
                    metrics_port=metrics_port and metrics_port + 10 * number,
                    log_path=log_path
                    and log_path.with_name(f"{log_path.name}.{number}" if number else log_path.name),
                    threads=max(1, thread_budget() // count),
                    control_key=key,
                    **of_each,
                )
            )
            for number in range(count)
        ]
        self.restarts = 0

    @property
    def servers(self) -> list[EmbeddedServer]:
        """The servers."""
        return [replica.server for replica in self._replicas]

    @property
    def ports(self) -> dict[int, bool]:
        """The gRPC port of each, and whether it takes new calls."""
        return {replica.server.grpc_port: replica.taking for replica in self._replicas}

    def start(self) -> None:
        """Start all; each has answered before the next one starts.

        Raises:
            ServerError: one did not start.
        """
        for replica in self._replicas:
            self._start(replica)

    def watch(self) -> None:
        """Ask each for an answer, and restart those that give none."""
        for number, replica in enumerate(self._replicas):
            if replica.is_well():
                replica.ask()
                continue
            how = "hangs" if replica.server.is_alive() else "ended"
            log.warning("replica %d %s and is started again", number, how)
            replica.forget_client()
            replica.server.stop(at_once=True)
            try:
                self._start(replica)
                self.restarts += 1
            except ServerError as exc:
                log.warning("replica %d did not start, it is tried again: %s", number, exc)

    def roll(self, announce: Callable[[], None]) -> None:
        """Restart one after the other without losing a call.

        Args:
            announce: tells the gateway which replicas take calls.
        """
        for replica in self._replicas:
            replica.taking = False
            announce()
            time.sleep(DRAIN_S)
            replica.forget_client()
            replica.server.stop()
            self._start(replica)
            replica.taking = True
            announce()
            time.sleep(2)  # until the gateway has seen that it is well

    def stop(self) -> None:
        """End all."""
        for replica in self._replicas:
            replica.forget_client()
            replica.server.stop()

    def _start(self, replica: Replica) -> None:
        replica.server.start()
        replica.answered_s = time.monotonic()
        log.info(
            "replica at %s is ready, process %s of %d", replica.server.url, replica.server.pid, os.getpid()
        )

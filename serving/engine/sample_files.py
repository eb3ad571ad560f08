"""A background thread that writes samples of served images to files and removes the oldest files.

It cannot fail a request: samples are dropped when the queue is full; the first error is logged and ends the
thread.
"""

import abc
import contextlib
import logging
import os
import queue
import threading
import time
from pathlib import Path
from typing import Generic, TypeVar

from fruitstand.artefacts import sweep_temporaries

log = logging.getLogger("fruitstand.backend")

FILE_AGE_S = 60.0
"""A file is written once it is full, or its first sample is this old, seconds."""

Taken = TypeVar("Taken")
"""A sample as the serving thread copies it."""
Part = TypeVar("Part")
"""The same sample as it is written."""


class SampleFiles(abc.ABC, Generic[Taken, Part]):
    """Writes samples to a folder; a subclass defines what a sample is, and starts the thread last."""

    def __init__(self, folder: Path, *, name: str, queue_length: int) -> None:
        self._folder = folder
        self._queue: queue.Queue[Taken | None] = queue.Queue(queue_length)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @abc.abstractmethod
    def _part(self, taken: Taken) -> Part:
        """Convert a sample to what is written; runs in the background thread."""

    @abc.abstractmethod
    def _is_full(self, parts: list[Part]) -> bool:
        """Whether these parts, at least one, fill a file."""

    @abc.abstractmethod
    def _write(self, path: Path, parts: list[Part]) -> None:
        """Write the parts, at least one, to a new file, and remove the oldest files above the limit."""

    def close(self) -> None:
        """Write the remaining samples and end the thread."""
        while self._thread.is_alive():  # a failed thread no longer empties the queue
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=0.1)
                break
        self._thread.join(timeout=10)

    def _work(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(self._folder)
            while self._collect_file():
                pass
        except Exception as exc:  # sampling must not fail a request
            log.warning("%s ends: %s: %s", self._thread.name, type(exc).__name__, exc)

    def _collect_file(self) -> bool:
        """Collect and write one file; returns False when sampling ends."""
        parts: list[Part] = []
        write_at_s, goes_on = float("inf"), True
        while not parts or not self._is_full(parts):
            wait_s = None if not parts else max(0.0, write_at_s - time.monotonic())
            try:
                taken = self._queue.get(timeout=wait_s)
            except queue.Empty:
                break
            if taken is None:
                goes_on = False
                break
            if not parts:
                write_at_s = time.monotonic() + FILE_AGE_S
            parts.append(self._part(taken))
        if parts:
            # The time makes names sort by age; the process id keeps apart instances that share the folder.
            self._write(self._folder / f"{time.time_ns():020}-{os.getpid()}.npz", parts)
        return goes_on

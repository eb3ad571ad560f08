"""Record each second's requests and the load generator's own health; recordings of processes can be added."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent

from fruitstand.errors import FruitstandError
from fruitstand_client.errors import DeadlineExceeded, Overloaded

GROWTH = 1.02
"""Ratio of neighbouring latency buckets; percentiles are within 1 % of the true ones."""
ANSWERED, REJECTED, MISSED, FAILED = "answered", "rejected", "missed", "failed"
"""Outcome of a call: an answer, an immediate rejection, no answer before the deadline, any other error."""


def outcome_of(error: FruitstandError | None) -> str:
    """Classify a call by its error.

    The client also raises `Overloaded` for a timeout in the server's queue, which counts as missed, and if no
    replica is available, which counts as failed.
    """
    if error is None:
        return ANSWERED
    if isinstance(error, DeadlineExceeded) or "Request timeout expired" in str(error):
        return MISSED
    is_refusal = isinstance(error, Overloaded) and "no healthy upstream" not in str(error)
    return REJECTED if is_refusal else FAILED


@dataclass(slots=True)
class Cell:
    """The calls of one request batch size that ended in one second."""

    outcomes: Counter[str] = field(default_factory=Counter)
    num_images: int = 0
    """Images in answered calls."""
    buckets: Counter[int] = field(default_factory=Counter)
    """Histogram of the latencies of answered calls; bucket `key` is around GROWTH ** key milliseconds."""

    def add(self, other: "Cell") -> None:
        """Add another cell's calls."""
        self.outcomes += other.outcomes
        self.num_images += other.num_images
        self.buckets += other.buckets

    def percentile_ms(self, percent: float) -> float | None:
        """A percentile of the latencies of answered calls, ms; None if there are none."""
        rank = math.ceil(percent / 100 * self.buckets.total())
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return float(GROWTH**bucket)
        return None


class Recording:
    """Cells keyed by (second, request batch), and the generator's health.

    Seconds are wall-clock time, so that the recordings of processes on one machine, or on machines with
    synchronised clocks, can be added.
    """

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], Cell] = {}
        self.health: list[tuple[float, float, float]] = []
        """(wall-clock time, share of one core the generator used, longest lag of its event loop in ms)."""

    def record(self, outcome: str, *, request_batch: int, latency_ms: float) -> None:
        """Record a call that has just ended."""
        cell = self.cells.setdefault((int(time.time()), request_batch), Cell())
        cell.outcomes[outcome] += 1
        if outcome == ANSWERED:
            cell.num_images += request_batch
            cell.buckets[round(math.log(max(latency_ms, 1e-3), GROWTH))] += 1

    def add(self, other: "Recording") -> None:
        """Add another process's recording."""
        for key, cell in other.cells.items():
            self.cells.setdefault(key, Cell()).add(cell)
        self.health += other.health

    def clear(self) -> None:
        """Remove everything."""
        self.cells.clear()
        self.health.clear()

    def window(self, start: float, end: float) -> Cell:
        """The sum of all calls that ended from second `start` to before second `end`."""
        return self.total(cell for (second, _), cell in self.cells.items() if start <= second < end)

    def total(self, cells: Iterable[Cell] | None = None) -> Cell:
        """The sum of the given cells, or of all cells."""
        total = Cell()
        for cell in self.cells.values() if cells is None else cells:
            total.add(cell)
        return total

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-ready values."""
        return {
            "cells": [
                [*key, cell.num_images, dict(cell.outcomes), list(cell.buckets.items())]
                for key, cell in self.cells.items()
            ],
            "health": list(self.health),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recording":
        """The inverse of `to_dict`."""
        recording = cls()
        for second, batch, num_images, outcomes, buckets in values["cells"]:
            counted = Counter({int(bucket): count for bucket, count in buckets})
            recording.cells[second, batch] = Cell(Counter(outcomes), num_images, counted)
        recording.health = [tuple(one) for one in values["health"]]
        return recording


PERIOD_S = 0.5
PROBE_S = 0.02
MAX_CPU_SHARE = 0.9
"""A Python process uses one core at most; above this share the generator is the limit."""
MAX_LAG_MS = 50.0
"""Largest acceptable median lag of the generator's event loop."""


def watch(recording: Recording) -> None:
    """Record CPU share and event-loop lag for ever; run it as a greenlet in each process that sends."""
    while True:
        started, used = time.perf_counter(), time.process_time()
        longest_s = 0.0
        while (asked := time.perf_counter()) - started < PERIOD_S:
            gevent.sleep(PROBE_S)
            longest_s = max(longest_s, time.perf_counter() - asked - PROBE_S)
        share = (time.process_time() - used) / (time.perf_counter() - started)
        recording.health.append((time.time(), round(share, 3), round(longest_s * 1e3, 1)))


def limits_found(health: Sequence[tuple[float, float, float]], start: float, end: float) -> list[str]:
    """Reasons why the generator was the limit between two wall-clock times, seconds; empty if it was not."""
    here = [(share, lag_ms) for moment, share, lag_ms in health if start <= moment <= end]
    if not here:
        return []
    reasons = []
    share = sorted(share for share, _ in here)[len(here) // 2]
    lag_ms = sorted(lag for _, lag in here)[len(here) // 2]
    if share > MAX_CPU_SHARE:
        reasons.append(f"a generator process used {share:.0%} of a core; add workers on other cores")
    if lag_ms > MAX_LAG_MS:
        reasons.append(f"the generator's event loop lagged by {lag_ms:.0f} ms; run it on a core of its own")
    return reasons

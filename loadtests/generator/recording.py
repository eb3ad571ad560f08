"""What a load generator saw, second by second, and how it was doing itself.

Several processes can be added up.
"""

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
"""Ratio of neighbouring latency buckets: a percentile is within 1 % of the true one."""
ANSWERED, REJECTED, MISSED, FAILED = "answered", "rejected", "missed", "failed"
"""How a call ended: an answer, a refusal at once, no answer before the deadline, any other error."""


def outcome_of(error: FruitstandError | None) -> str:
    """How a call ended.

    The client calls it overload as well when no replica is there, and when a wait in a queue took too long.
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
    """In answered calls."""
    buckets: Counter[int] = field(default_factory=Counter)
    """Latencies of answered calls: how many lie around GROWTH ** key milliseconds."""

    def add(self, other: "Cell") -> None:
        """Take the other's calls as well."""
        self.outcomes += other.outcomes
        self.num_images += other.num_images
        self.buckets += other.buckets

    def percentile_ms(self, percent: float) -> float | None:
        """Latency that so many percent of the answered calls did not exceed, ms; None without any."""
        rank = math.ceil(percent / 100 * self.buckets.total())
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return float(GROWTH**bucket)
        return None


class Recording:
    """Cells by (second, request batch), and how the generator itself was doing.

    Seconds are those of the wall clock, so that processes on one machine, or on machines whose clocks agree,
    can be added up.
    """

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], Cell] = {}
        self.health: list[tuple[float, float, float]] = []
        """(wall clock, share of one core the generator used, longest lag of its loop in ms)."""

    def record(self, outcome: str, *, request_batch: int, latency_ms: float) -> None:
        """One call that has ended now."""
        cell = self.cells.setdefault((int(time.time()), request_batch), Cell())
        cell.outcomes[outcome] += 1
        if outcome == ANSWERED:
            cell.num_images += request_batch
            cell.buckets[round(math.log(max(latency_ms, 1e-3), GROWTH))] += 1

    def add(self, other: "Recording") -> None:
        """Take another process's part as well."""
        for key, cell in other.cells.items():
            self.cells.setdefault(key, Cell()).add(cell)
        self.health += other.health

    def clear(self) -> None:
        """Forget everything."""
        self.cells.clear()
        self.health.clear()

    def window(self, start: float, end: float) -> Cell:
        """All calls that ended from second `start` up to second `end`, of every batch size."""
        return self.total(cell for (second, _), cell in self.cells.items() if start <= second < end)

    def total(self, cells: Iterable[Cell] | None = None) -> Cell:
        """The sum of some cells; without an argument of all."""
        total = Cell()
        for cell in self.cells.values() if cells is None else cells:
            total.add(cell)
        return total

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
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
"""A process of Python uses one core at most; from here on it is the limit."""
MAX_LAG_MS = 50.0
"""What a request may wait in the generator's own loop, in most periods."""


def watch(recording: Recording) -> None:
    """Note CPU share and loop lag for ever; run it as a greenlet in each process that sends requests."""
    while True:
        started, used = time.perf_counter(), time.process_time()
        longest_s = 0.0
        while (asked := time.perf_counter()) - started < PERIOD_S:
            gevent.sleep(PROBE_S)
            longest_s = max(longest_s, time.perf_counter() - asked - PROBE_S)
        share = (time.process_time() - used) / (time.perf_counter() - started)
        recording.health.append((time.time(), round(share, 3), round(longest_s * 1e3, 1)))


def limits_found(health: Sequence[tuple[float, float, float]], start: float, end: float) -> list[str]:
    """Why the generator limited what was measured in a stretch of time; empty when it did not.

    Args:
        health: of `Recording`.
        start: wall clock, seconds.
        end: wall clock, seconds.
    """
    here = [(share, lag_ms) for moment, share, lag_ms in health if start <= moment <= end]
    if not here:
        return []
    reasons = []
    share = sorted(share for share, _ in here)[len(here) // 2]
    lag_ms = sorted(lag for _, lag in here)[len(here) // 2]
    if share > MAX_CPU_SHARE:
        reasons.append(f"a generator process used {share:.0%} of a core; add workers, on cores of their own")
    if lag_ms > MAX_LAG_MS:
        reasons.append(f"the generator's loop was {lag_ms:.0f} ms late; it needs a core of its own")
    return reasons

"""What every fault works with, and what it returns."""

from dataclasses import dataclass
from typing import Any

from benchmarks.faults.ledger import Caller, Load
from benchmarks.faults.running import Running

STEADY_SHARE = 0.3
"""Of the capacity: the load under which something is broken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One fault on one subject."""

    text: str
    """For the table."""
    numbers: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A running subject and what was measured of it before anything was broken."""

    running: Running
    capacity: float
    """Calls/s."""
    soak_s: float

    @property
    def caller(self) -> Caller:
        """With good images."""
        return self.running.caller

    def steady(self) -> Load:
        """A load that it can bear."""
        return Load(self.caller, rate=STEADY_SHARE * self.capacity)

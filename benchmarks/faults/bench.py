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

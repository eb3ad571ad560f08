"""A gate: the measured value of one check and its limit."""

import math
from dataclasses import dataclass
from typing import Any

MAX_SLOWDOWN = 1.1
"""Largest time per batch, relative to the version that is replaced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """One check's result."""

    name: str
    kind: str
    """at_most or at_least: the side of the limit on which the value has to be; the limit itself passes."""
    value: float
    limit: float
    detail: str = ""
    """Explains a failure where the number alone does not."""

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit; NaN never is."""
        return self.value >= self.limit if self.kind == "at_least" else self.value <= self.limit

    def __str__(self) -> str:
        allowed = f"allowed {self.kind.replace('_', ' ')} {self.limit:.4g}"
        return f"{self.name}: got {self.value:.4g}, {allowed}" + (f" ({self.detail})" if self.detail else "")

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values; NaN and infinity become null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "value": self.value if math.isfinite(self.value) else None,
            "limit": self.limit,
            "passed": self.passed,
            **({"detail": self.detail} if self.detail else {}),
        }


def read_gate(record: dict[str, Any]) -> Gate:
    """Read a gate from `to_json`'s output; whether it passed is computed again.

    Raises:
        ValueError: no such kind, or the value or limit is no number.
    """
    if record["kind"] not in ("at_most", "at_least"):
        raise ValueError(f"gate {record['name']}: kind {record['kind']!r}")
    value = math.nan if record["value"] is None else float(record["value"])
    return Gate(name=record["name"], kind=record["kind"], value=value, limit=float(record["limit"]))


def at_most(name: str, value: float, limit: float, *, detail: str = "") -> Gate:
    """A gate that passes at or below its limit."""
    return Gate(name=name, kind="at_most", value=float(value), limit=float(limit), detail=detail)


def at_least(name: str, value: float, limit: float) -> Gate:
    """A gate that passes at or above its limit."""
    return Gate(name=name, kind="at_least", value=float(value), limit=float(limit))


def share_or_one_image(share: float, num_images: int) -> float:
    """A limit on a share of images, or one image where the set is too small to show that share."""
    return max(share, 1 / num_images)

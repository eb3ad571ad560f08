"""A gate: one check's number beside the limit it is held against."""

import math
from dataclasses import dataclass
from typing import Any

MAX_SLOWDOWN = 1.1
"""Time for a batch, as a multiple of the version's that is replaced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """One check's result."""

    name: str
    kind: str
    """at_most or at_least: on which side of the limit the value has to be; the limit itself passes."""
    value: float
    limit: float
    detail: str = ""
    """What is wrong, where a number alone does not say it."""

    @property
    def passed(self) -> bool:
        """Whether the limit holds; NaN passes none."""
        return self.value >= self.limit if self.kind == "at_least" else self.value <= self.limit

    def __str__(self) -> str:
        allowed = f"allowed {self.kind.replace('_', ' ')} {self.limit:.4g}"
        return f"{self.name}: got {self.value:.4g}, {allowed}" + (f" ({self.detail})" if self.detail else "")

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values; a value that is no number (NaN, infinity) becomes null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "value": self.value if math.isfinite(self.value) else None,
            "limit": self.limit,
            "passed": self.passed,
            **({"detail": self.detail} if self.detail else {}),
        }


def read_gate(record: dict[str, Any]) -> Gate:
    """A gate from what `to_json` gave; whether it passed is found out again.

    Raises:
        ValueError: no such kind, or the value or limit is no number.
    """
    if record["kind"] not in ("at_most", "at_least"):
        raise ValueError(f"gate {record['name']}: kind {record['kind']!r}")
    value = math.nan if record["value"] is None else float(record["value"])
    return Gate(name=record["name"], kind=record["kind"], value=value, limit=float(record["limit"]))


def at_most(name: str, value: float, limit: float, *, detail: str = "") -> Gate:
    """A gate that passes up to and including its limit."""
    return Gate(name=name, kind="at_most", value=float(value), limit=float(limit), detail=detail)


def at_least(name: str, value: float, limit: float) -> Gate:
    """A gate that passes from its limit on."""
    return Gate(name=name, kind="at_least", value=float(value), limit=float(limit))


def share_or_one_image(share: float, num_images: int) -> float:
    """A limit on a share of images, or one image where the set is too small to show that share."""
    return max(share, 1 / num_images)

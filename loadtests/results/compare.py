"""Two results side by side: ratios with their spread, and what of it is noise."""

import statistics
from typing import Any

from fruitstand.errors import UsageError
from loadtests.results.result import LoadResult, Point

MIN_SAMPLES = 3
"""Fewer rounds say nothing of their spread."""
MIN_TOLERANCE = 0.02


def compare(before: LoadResult, after: LoadResult) -> list[dict[str, Any]]:
    """Ratios after over before, for every load that both have.

    Args:
        before: a result.
        after: a result.

    Returns:
        One row a load and quantity (`images_per_s`, `p99_ms`): ratio of the medians, the lowest and the
        highest ratio of two single samples, and the verdict: "noise" where those lie on both sides of 1, else
        "better" or "worse".

    Raises:
        UsageError: no load is in both.
    """
    rows = []
    for one, other in _pairs(before, after):
        for quantity, key in (("images_per_s", "samples"), ("p99_ms", "p99_samples_ms")):
            then = [value for value in getattr(one, key) if value]
            now = [value for value in getattr(other, key) if value]
            if not then or not now:
                continue
            low, high = min(now) / max(then), max(now) / min(then)
            verdict = "noise"
            if low > 1 or high < 1:
                verdict = "better" if (low > 1) == (quantity == "images_per_s") else "worse"
            rows.append(
                {
                    **_where(one),
                    "quantity": quantity,
                    "ratio": round(statistics.median(now) / statistics.median(then), 3),
                    "low": round(low, 3),
                    "high": round(high, 3),
                    "verdict": verdict,
                }
            )
    return rows


def gate(baseline: LoadResult, current: LoadResult) -> list[dict[str, Any]]:
    """Whether throughput kept up with a baseline, within what its own rounds differ by.

    Args:
        baseline: a result of at least three rounds on the same kind of machine.
        current: a result with at least one of the same loads.

    Returns:
        One row a load: ratio of the medians, the tolerance, whether it is `ok`.

    Raises:
        UsageError: too few rounds, another machine, or no load is in both.
    """
    if (then := baseline.hardware["cpu"]) != (now := current.hardware["cpu"]):
        raise UsageError(f"the baseline was measured on {then}, this is {now}: measure it here")
    rows = []
    for one, other in _pairs(baseline, current):
        if len(one.samples) < MIN_SAMPLES:
            raise UsageError(f"the baseline has {len(one.samples)} rounds, at least {MIN_SAMPLES} are needed")
        tolerance = max(MIN_TOLERANCE, _spread(one.samples), _spread(other.samples))
        ratio = statistics.median(other.samples) / max(statistics.median(one.samples), 1e-9)
        rows.append(
            {
                **_where(one),
                "ratio": round(ratio, 3),
                "tolerance": round(tolerance, 3),
                "ok": ratio >= 1 - tolerance,
            }
        )
    return rows


def _pairs(before: LoadResult, after: LoadResult) -> list[tuple[Point, Point]]:
    known = {_key(point): point for point in before.points}
    pairs = [(known[_key(point)], point) for point in after.points if _key(point) in known]
    if not pairs:
        raise UsageError("the two results have no load and request batch in common")
    return pairs


def _key(point: Point) -> tuple[str, float, float]:
    return point.loop, point.load, point.request_batch


def _where(point: Point) -> dict[str, Any]:
    return {"loop": point.loop, "load": point.load, "request_batch": point.request_batch}


def _spread(samples: list[float]) -> float:
    """From the lowest to the highest, as a share of the median."""
    return (max(samples) - min(samples)) / max(statistics.median(samples), 1e-9)

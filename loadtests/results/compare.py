"""Compare two results: ratios with their spread, and whether a difference is noise."""

import statistics
from typing import Any

from fruitstand.errors import UsageError
from loadtests.results.result import LoadResult, Point

MIN_SAMPLES = 3
"""Rounds needed to estimate their spread."""
MIN_TOLERANCE = 0.02


def compare(before: LoadResult, after: LoadResult) -> list[dict[str, Any]]:
    """Compute the ratio after / before for every load that both results have.

    Returns:
        One row for each load and quantity (`images_per_s`, `p99_ms`): the ratio of the medians, the lowest
        and highest ratio of two single samples, and the verdict, which is "noise" if 1 lies between these
        two, else "better" or "worse".

    Raises:
        UsageError: the results have no load in common.
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
    """Check that throughput is no lower than a baseline's, within the spread of the rounds.

    Args:
        baseline: a result of at least three rounds on the same kind of machine.
        current: a result with at least one of the same loads.

    Returns:
        One row for each load: the ratio of the medians, the tolerance, and whether it is `ok`.

    Raises:
        UsageError: too few rounds, another CPU, or no load in common.
    """
    if (then := baseline.hardware["cpu"]) != (now := current.hardware["cpu"]):
        raise UsageError(f"the baseline was measured on {then}, this is {now}: measure the baseline here")
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
    """Highest minus lowest sample, as a share of the median."""
    return (max(samples) - min(samples)) / max(statistics.median(samples), 1e-9)

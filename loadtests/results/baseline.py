"""Compare the throughput of a result with a baseline's, within the spread of the rounds."""

import statistics
from typing import Any

from fruitstand.errors import UsageError
from loadtests.results.result import LoadResult, Point

MIN_SAMPLES = 3
"""Rounds needed to estimate their spread."""
MIN_TOLERANCE = 0.02


def compare(baseline: LoadResult, current: LoadResult) -> list[dict[str, Any]]:
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
    known = {_load(point): point for point in baseline.points}
    rows = []
    for point in current.points:
        if (before := known.get(_load(point))) is None:
            continue
        if len(before.samples) < MIN_SAMPLES:
            raise UsageError(
                f"the baseline has {len(before.samples)} rounds, at least {MIN_SAMPLES} are needed"
            )
        tolerance = max(MIN_TOLERANCE, _spread(before.samples), _spread(point.samples))
        ratio = statistics.median(point.samples) / max(statistics.median(before.samples), 1e-9)
        rows.append(
            {
                "loop": point.loop,
                "load": point.load,
                "request_batch": point.request_batch,
                "ratio": round(ratio, 3),
                "tolerance": round(tolerance, 3),
                "ok": ratio >= 1 - tolerance,
            }
        )
    if not rows:
        raise UsageError("the two results have no load and request batch in common")
    return rows


def _load(point: Point) -> tuple[str, float, float]:
    return point.loop, point.load, point.request_batch


def _spread(samples: list[float]) -> float:
    """Highest minus lowest sample, as a share of the median."""
    return (max(samples) - min(samples)) / max(statistics.median(samples), 1e-9)

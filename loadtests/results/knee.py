"""The knee: up to which load throughput still grows, and from where on only latency does."""

import math
from collections.abc import Sequence
from dataclasses import replace

from loadtests.results.result import Knee, LoadResult, Point

SHARE = 0.95
"""Of the highest throughput; what comes after it is noise and waiting."""


def find_knee(points: Sequence[Point]) -> Knee | None:
    """The smallest load that gives nearly the highest throughput, of the points of one request batch size.

    Returns:
        None with fewer than three points.
    """
    if len(points) < 3:
        return None
    ordered = sorted(points, key=lambda point: point.load)
    peak = max(point.images_per_s for point in ordered)
    number, knee = next(
        (number, point) for number, point in enumerate(ordered) if point.images_per_s >= SHARE * peak
    )
    return Knee(
        load=knee.load,
        request_batch=knee.request_batch,
        images_per_s=knee.images_per_s,
        p99_ms=knee.latency_ms["p99"],
        peak_images_per_s=peak,
        reached=number < len(ordered) - 1,
    )


def judged_points(result: LoadResult) -> list[Point]:
    """The points of a result; those of a ramp as if what was refused behind its knee had not been asked for.

    A ramp goes on until there is too much; whatever else fails there than by a refusal still counts.
    """
    if result.settings["profile"] != "ramp":
        return result.points
    knee = max((knee.load for knee in result.knees), default=math.inf)
    return [
        replace(point, num_requests=point.num_requests - point.num_rejected) if point.load > knee else point
        for point in result.points
    ]

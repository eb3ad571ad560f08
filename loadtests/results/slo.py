"""Find the knee of a result, and check it against the objectives in a TOML file.

Up to the knee more load gives more throughput; beyond it more load only adds latency.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fruitstand.errors import UsageError
from loadtests.generator.profiles import PROFILES
from loadtests.results.result import Knee, LoadResult, Point, Verdict

SHARE = 0.95
"""Share of the highest throughput that the knee must reach."""


def find_knee(points: Sequence[Point]) -> Knee | None:
    """Find the smallest load that gives at least `SHARE` of the highest throughput.

    Args:
        points: measured with the same request batch.

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
    """The points of a result that the objectives apply to.

    A ramp overloads the server on purpose, so rejected requests beyond its knee do not count as errors. All
    other failures count.
    """
    if result.settings["profile"] != "ramp":
        return result.points
    knee = max((knee.load for knee in result.knees), default=math.inf)
    return [
        replace(point, num_requests=point.num_requests - point.num_rejected) if point.load > knee else point
        for point in result.points
    ]


LIMITS = {
    "p99_ms": "at most",
    "error_rate": "at most",
    "images_per_s": "at least",
    "offered_share": "at least",
}


def read_slo(path: Path, profile: str) -> dict[str, float]:
    """Read the objectives of one profile from a TOML file with a table for each, keys as in `LIMITS`.

    Raises:
        UsageError: no such file, not TOML, an unknown profile or key, not a number, or no such table.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"{path}: the SLO file cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: not a TOML file: {exc}") from exc
    for name, table in tables.items():
        if name not in PROFILES or not isinstance(table, dict):
            raise UsageError(f"{path}: got {name!r}, allowed tables: {', '.join(PROFILES)}")
        for key, value in table.items():
            if key not in LIMITS:
                raise UsageError(f"{path}: [{name}] has {key!r}, allowed {', '.join(LIMITS)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UsageError(f"{path}: [{name}] {key}: got {value!r}, allowed a number from 0")
    if not tables.get(profile):
        raise UsageError(f"{path}: has no objective for profile {profile}; add a table [{profile}]")
    return {key: float(value) for key, value in tables[profile].items()}


def judge(objectives: dict[str, float], points: list[Point]) -> list[Verdict]:
    """Compare each objective with the worst of the `judged_points`, or for images/s with the best."""
    calls = sum(point.num_requests for point in points)
    unanswered = sum(point.num_requests - point.num_answered for point in points)
    latencies = [point.latency_ms["p99"] for point in points]
    offered = [point.images_per_s / point.load for point in points if point.loop == "open"]
    measured = {
        "p99_ms": None if None in latencies else max(latencies, default=None),
        "error_rate": unanswered / calls if calls else None,
        "images_per_s": max((point.images_per_s for point in points), default=None),
        "offered_share": min(offered, default=None),
    }
    verdicts = []
    for key, limit in objectives.items():
        value = measured[key]
        met = value is not None and (value <= limit if LIMITS[key] == "at most" else value >= limit)
        verdicts.append(Verdict(objective=key, limit=limit, measured=value, met=met))
    return verdicts

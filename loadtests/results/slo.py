"""What a result says: its knee, and whether it meets the objectives of a TOML file.

The knee is the load up to which throughput still grows, and from where on only latency does.
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


LIMITS = {
    "p99_ms": "at most",
    "error_rate": "at most",
    "images_per_s": "at least",
    "offered_share": "at least",
}


def read_slo(path: Path, profile: str) -> dict[str, float]:
    """The objectives of one profile.

    Args:
        path: a TOML file with one table a profile, keys as in `LIMITS`.
        profile: which table.

    Raises:
        UsageError: no such file, not TOML, an unknown profile or key, no number, or nothing for this profile.
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
        raise UsageError(f"{path}: has no objective for profile {profile}: add a table [{profile}]")
    return {key: float(value) for key, value in tables[profile].items()}


def judge(objectives: dict[str, float], points: list[Point]) -> list[Verdict]:
    """Each objective with what was measured and whether it was met.

    Args:
        objectives: of `read_slo`.
        points: of a result; the worst of them counts, for images/s the best.
    """
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

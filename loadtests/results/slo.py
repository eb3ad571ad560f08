"""Service level objectives: read from a TOML file, held against a result."""

import math
import tomllib
from pathlib import Path

from fruitstand.errors import UsageError
from loadtests.generator.profiles import PROFILES
from loadtests.results.result import Point, Verdict

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

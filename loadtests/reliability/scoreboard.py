"""`fruitstand reliability`: run scenarios, write their numbers, and render docs/reliability.md from them.

python -m loadtests.reliability.scoreboard RESULT.json > docs/reliability.md
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.hardware import hardware
from loadtests.reliability.scenarios import BLOCKERS, NUM_SCENARIOS, SCENARIOS, TIERS
from loadtests.reliability.stack import Stack

RESULT_NAME = "reliability.json"


def score(*, repository: Path, scenario: int | None, tier: str, out: Path) -> dict[str, Any]:
    """Run one scenario or all, each on a stack of its own; print each outcome as a line of JSON.

    Args:
        repository: the model repository that is served.
        scenario: its number; None runs all that are built.
        tier: "ci" or "full".
        out: gets the result and the logs.

    Returns:
        The result, as written; scenarios that are not built count as failed.

    Raises:
        UsageError: no such tier or scenario.
    """
    if tier not in TIERS:
        raise UsageError(f"--tier: got {tier}, allowed {', '.join(TIERS)}")
    if scenario is not None and scenario not in SCENARIOS:
        raise UsageError(f"--scenario: got {scenario}, built are {', '.join(map(str, SCENARIOS))}")
    rows = []
    for number in range(1, NUM_SCENARIOS + 1) if scenario is None else [scenario]:
        row = _run(number, repository, tier, out) if number in SCENARIOS else _missing(number)
        rows.append(row)
        print(json.dumps(row), flush=True)
    result = {
        "tier": tier,
        "hardware": hardware(),
        "passed": sum(row["passed"] for row in rows),
        "scenarios": rows,
    }
    write_json(out / RESULT_NAME, result)
    return result


def _run(number: int, repository: Path, tier: str, out: Path) -> dict[str, Any]:
    run = SCENARIOS[number]
    title = (run.__doc__ or "").partition(": ")[2]
    started = time.monotonic()
    passed, numbers, left = False, {}, None
    try:
        stack = Stack(repository, out / f"scenario{number}")
        try:
            outcome = run(stack, TIERS[tier])
            passed, numbers = outcome.passed, outcome.numbers
        finally:
            left = stack.stop()
    except FruitstandError as exc:
        passed, numbers = False, {**numbers, "error": str(exc)}
    clean = left is not None and not any(left.values())
    return {
        "scenario": number,
        "title": title,
        "blocker": number in BLOCKERS,
        "passed": passed and clean,
        "seconds": round(time.monotonic() - started, 1),
        "numbers": numbers,
        "left_behind": left,
    }


def _missing(number: int) -> dict[str, Any]:
    return {
        "scenario": number,
        "title": "not built",
        "blocker": number in BLOCKERS,
        "passed": False,
        "seconds": 0.0,
        "numbers": {},
        "left_behind": None,
    }


def render(result: dict[str, Any]) -> str:
    """The page for docs/reliability.md."""
    lines = [
        "# Reliability",
        "",
        f"Written by `python -m loadtests.reliability.scoreboard`. Tier {result['tier']}, on"
        f" {result['hardware']}: {result['passed']} of {len(result['scenarios'])} passed.",
        "",
        "| # | scenario | blocks a release | passed | numbers |",
        "|---|---|---|---|---|",
    ]
    for row in result["scenarios"]:
        numbers = json.dumps(row["numbers"]).replace("|", "\\|") if row["numbers"] else ""
        blocker, passed = ("yes" if row[key] else "no" for key in ("blocker", "passed"))
        lines.append(f"| {row['scenario']} | {row['title']} | {blocker} | {passed} | {numbers} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(render(read_json(Path(sys.argv[1]))), end="")

"""`fruitstand reliability`: run scenarios, write their numbers, and render docs/reliability.md from them.

python -m loadtests.reliability.scoreboard RESULT.json > docs/reliability.md
"""

import json
import logging
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json, write_json
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.hardware import hardware
from loadtests.reliability.material import Material
from loadtests.reliability.scenarios import BLOCKERS, NUM_SCENARIOS, SCENARIOS
from loadtests.reliability.setting import TIERS, Setting, Tier

log = logging.getLogger("fruitstand.reliability")

RESULT_NAME = "reliability.json"


def score(
    *, repository: Path | None, scenario: int | None, tier: str, out: Path, repeats: int | None = None
) -> dict[str, Any]:
    """Run one scenario or all, each on a stack of its own; print each outcome as a line of JSON.

    Args:
        repository: the model repository that is served; None: a small one, made in `out`.
        scenario: its number; None runs all that are built.
        tier: "brief", "ci" or "full".
        out: gets the result, the logs and what the scenarios work on, which is made once.
        repeats: of each fault; None: the tier's.

    Returns:
        The result, as written; scenarios that are not built count as failed.

    Raises:
        UsageError: no such tier or scenario.
    """
    if tier not in TIERS:
        raise UsageError(f"--tier: got {tier}, allowed {', '.join(TIERS)}")
    if scenario is not None and scenario not in SCENARIOS:
        raise UsageError(f"--scenario: got {scenario}, built are {', '.join(map(str, SCENARIOS))}")
    chosen = TIERS[tier] if repeats is None else replace(TIERS[tier], repeats=repeats)
    out = out.resolve()
    material = Material(out / "material")
    served = repository or material.repository
    rows = []
    for number in range(1, NUM_SCENARIOS + 1) if scenario is None else [scenario]:
        row = _run(number, served, material, chosen, out) if number in SCENARIOS else _missing(number)
        rows.append(row)
        print(json.dumps(row), flush=True)
    result = {
        "tier": tier,
        "repeats": chosen.repeats,
        "hardware": hardware(),
        "passed": sum(row["passed"] for row in rows),
        "scenarios": rows,
    }
    write_json(out / RESULT_NAME, result)
    return result


def _run(number: int, repository: Path, material: Material, tier: Tier, out: Path) -> dict[str, Any]:
    run = SCENARIOS[number]
    folder = out / f"scenario{number}"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    folder.mkdir(parents=True)
    setting = Setting(tier, folder, material, repository)
    started = time.monotonic()
    try:
        outcome = run(setting)
        passed, numbers = outcome.passed, outcome.numbers
    except Exception as exc:  # one that breaks has failed; the others are run all the same
        passed, numbers = False, {"error": f"{type(exc).__name__}: {exc}"}
        if not isinstance(exc, FruitstandError):
            log.exception("scenario %d broke", number)
    row = {
        "scenario": number,
        "title": (run.__doc__ or "").partition(": ")[2],
        "blocker": number in BLOCKERS,
        "passed": passed and not setting.left_behind and not setting.complaints,
        "seconds": round(time.monotonic() - started, 1),
        "numbers": numbers,
        "counters": setting.audits,
        "complaints": setting.complaints,
        "left_behind": setting.left_behind,
    }
    # Reasons name files, and where they lay is nobody's business.
    without_paths: dict[str, Any] = json.loads(json.dumps(row).replace(f"{out.resolve()}/", ""))
    return without_paths


def _missing(number: int) -> dict[str, Any]:
    return {
        "scenario": number,
        "title": "not built",
        "blocker": number in BLOCKERS,
        "passed": False,
        "seconds": 0.0,
        "numbers": {},
        "counters": [],
        "complaints": [],
        "left_behind": [],
    }


def render(result: dict[str, Any]) -> str:
    """The page for docs/reliability.md: a table, and behind it the numbers of each scenario."""
    rows = result["scenarios"]
    blockers = [row for row in rows if row["blocker"]]
    lines = [
        "# Reliability",
        "",
        f"Written by `python -m loadtests.reliability.scoreboard`. Tier {result['tier']}, each fault"
        f" {result['repeats']} times, on"
        f" {result['hardware']}: {result['passed']} of {len(rows)} passed, of what blocks a release"
        f" {sum(row['passed'] for row in blockers)} of {len(blockers)}.",
        "",
        "| # | scenario | blocks a release | passed | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        blocker, passed = ("yes" if row[key] else "no" for key in ("blocker", "passed"))
        lines.append(f"| {row['scenario']} | {row['title']} | {blocker} | {passed} | {row['seconds']:.0f} |")
    for row in rows:
        told = {key: row[key] for key in ("numbers", "complaints", "left_behind") if row[key]}
        if told:
            lines += ["", f"## {row['scenario']}. {row['title']}", ""]
            lines += ["```json", json.dumps(told, indent=1), "```"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(render(read_json(Path(sys.argv[1]))), end="")

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
from fruitstand.checkout import git_commit
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
        The result, as written; scenarios that are not built count as failed. One scenario replaces its row in
        the result of all that lies in `out`.

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
    if scenario is not None:
        rows = _replaced(out / RESULT_NAME, rows[0], tier)
    result = {
        "tier": tier,
        "hardware": hardware(),
        "passed": sum(row["passed"] for row in rows),
        "scenarios": rows,
    }
    write_json(out / RESULT_NAME, result)
    return result


def _replaced(path: Path, row: dict[str, Any], tier: str) -> list[dict[str, Any]]:
    """The rows of an earlier run of all scenarios of this tier, if there is one, with this in its place."""
    if not path.is_file():
        return [row]
    earlier = read_json(path)
    if earlier["tier"] != tier or len(earlier["scenarios"]) < NUM_SCENARIOS:
        return [row]
    return [row if one["scenario"] == row["scenario"] else one for one in earlier["scenarios"]]


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
        "repeats": tier.repeats,
        "commit": git_commit(Path(__file__).parent),
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
        "repeats": 0,
        "commit": git_commit(Path(__file__).parent),
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
        f"Written by `python -m loadtests.reliability.scoreboard`. Tier {result['tier']}, on"
        f" {result['hardware']}: {result['passed']} of {len(rows)} passed, of what blocks a release"
        f" {sum(row['passed'] for row in blockers)} of {len(blockers)}.",
        "",
        "| # | scenario | blocks a release | passed | faults | seconds | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        blocker, passed = ("yes" if row[key] else "no" for key in ("blocker", "passed"))
        cells = (row["scenario"], row["title"], blocker, passed, row["repeats"], f"{row['seconds']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} | {(row['commit'] or '')[:7]} |")
    for row in rows:
        told = {key: row[key] for key in ("numbers", "complaints", "left_behind") if row[key]}
        if told:
            lines += ["", f"## {row['scenario']}. {row['title']}", ""]
            lines += ["```json", json.dumps(told, indent=1), "```"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(render(read_json(Path(sys.argv[1]))), end="")

"""Run one scenario, and put the rows of all of them into one result and into docs/reliability.md.

`make nightly` runs the scenarios as tests (`tests/nightly/test_chaos.py`). With FRUITSTAND_CHAOS_OUT=DIR each
writes its row there, and

    python -m tests.nightly.chaos.scoreboard DIR

writes `benchmarks/results/chaos_*.json` and the end of `docs/reliability.md` from the rows.
"""

import datetime
import json
import logging
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json, write_bytes, write_json
from fruitstand.errors import FruitstandError
from fruitstand.machine.provenance import git_commit, hardware
from tests.nightly.chaos.material import Material
from tests.nightly.chaos.scenarios import BLOCKERS, NUM_SCENARIOS, SCENARIOS
from tests.nightly.chaos.setting import Claim, Setting, Tier

log = logging.getLogger("fruitstand.chaos")

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results"
MARK = "<!-- rendered: what follows is written by python -m tests.nightly.chaos.scoreboard -->\n"
HOW_TO_RUN = """\
Thirty fault-injection scenarios run against a live stack: three embedded servers behind the gateway, with
callers that keep a ledger of every call. `make nightly` runs all of them briefly. With larger numbers:

```bash
export FRUITSTAND_CHAOS_TIER=ci FRUITSTAND_CHAOS_OUT=runs/chaos
.venv/bin/pytest -m nightly tests/nightly/test_chaos.py
.venv/bin/pytest -m nightly tests/nightly/test_chaos.py -k scenario_17
.venv/bin/python -m tests.nightly.chaos.scoreboard runs/chaos     # writes this section
```

""".splitlines()


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What came of one scenario."""

    scenario: int
    title: str
    blocker: bool
    passed: bool
    """Every claim held, the counters agree with the callers' ledgers, and nothing is left behind."""
    claims: tuple[Claim, ...]
    seconds: float
    repeats: int
    commit: str | None
    date: str
    hardware: dict[str, Any]
    numbers: dict[str, Any]
    counters: list[dict[str, Any]]
    complaints: list[str]
    left_behind: list[str]

    def to_json(self, folder: Path) -> dict[str, Any]:
        """As JSON-ready values; paths in `folder` become relative to it."""
        text = json.dumps(asdict(self), default=str).replace(f"{folder.resolve()}/", "")
        document: dict[str, Any] = json.loads(text)
        return document


def run_scenario(number: int, repository: Path, material: Material, tier: Tier, out: Path) -> Row:
    """Run one scenario on a stack of its own.

    Args:
        number: of the scenario, 1 to 30.
        repository: the model repository that is served; it is not written to.
        material: data, runs and repositories that scenarios work on.
        tier: how much of everything.
        out: gets a folder with the scenario's logs and copies.
    """
    run = SCENARIOS[number]
    folder = out / f"scenario{number}"
    shutil.rmtree(folder, ignore_errors=True)  # from an earlier run
    folder.mkdir(parents=True)
    setting = Setting(tier, folder, material, repository)
    started = time.monotonic()
    try:
        outcome = run(setting)
        claims, numbers = outcome.claims, outcome.numbers
    except Exception as exc:  # a scenario that breaks has failed; its row says how
        claims = (Claim("the scenario ends", f"{type(exc).__name__}: {exc}", "no error", held=False),)
        numbers = {}
        if not isinstance(exc, FruitstandError):
            log.exception("scenario %d broke", number)
    return Row(
        scenario=number,
        title=(run.__doc__ or "").partition(": ")[2],
        blocker=number in BLOCKERS,
        passed=all(one.held for one in claims) and not setting.left_behind and not setting.complaints,
        claims=claims,
        seconds=round(time.monotonic() - started, 1),
        repeats=tier.repeats,
        commit=git_commit(Path(__file__).parent),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
        numbers=numbers,
        counters=setting.audits,
        complaints=setting.complaints,
        left_behind=setting.left_behind,
    )


def gather(folder: Path) -> dict[str, Any]:
    """The rows that tests wrote into a folder, as one result, in the order of their numbers."""
    rows = sorted(
        (read_json(path) for path in folder.glob("scenario*.json")), key=lambda row: int(row["scenario"])
    )
    return {"passed": sum(row["passed"] for row in rows), "scenarios": rows}


def render(result: dict[str, Any]) -> str:
    """The end of docs/reliability.md: how to run the scenarios, and a table of what came out."""
    rows = result["scenarios"]
    blockers = [row for row in rows if row["blocker"]]
    lines = [
        "## Thirty scenarios on our stack",
        "",
        *HOW_TO_RUN,
        f"{result['passed']} of {NUM_SCENARIOS} scenarios pass, and"
        f" {sum(row['passed'] for row in blockers)} of {len(BLOCKERS)} release blockers.",
        "The numbers of each run are in `benchmarks/results/chaos_*.json`.",
        "",
        "| # | scenario | release blocker | passed | faults | seconds | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        blocker, passed = ("yes" if row[key] else "no" for key in ("blocker", "passed"))
        cells = (row["scenario"], row["title"], blocker, passed, row["repeats"], f"{row['seconds']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} | {(row['commit'] or '')[:7]} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Gather the rows of a folder, and write result and page."""
    result = gather(Path(sys.argv[1]))
    last = result["scenarios"][-1]
    cpu = f"{last['hardware']['cpu']}".lower().replace(" ", "-")
    name = f"chaos_{cpu}-{last['hardware']['num_cores']}c_{last['date'][:10].replace('-', '')}"
    write_json(RESULTS / f"{name}_{(last['commit'] or 'none')[:7]}.json", result)
    before = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    write_bytes(PAGE, f"{before}{MARK}{render(result)}".encode())


if __name__ == "__main__":
    main()

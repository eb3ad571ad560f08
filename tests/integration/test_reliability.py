"""The scoreboard on a real stack, briefly: that scenarios run, count, and leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(14, id="malformed_requests"),
        pytest.param(25, id="control_refused"),
    ],
)
def test_a_scenario_passes_briefly(scenario: int, repository: Path, tmp_path: Path) -> None:
    """As a user calls it; counters and ledger agree, and no process, file or shared memory is left."""
    done = subprocess.run(
        [sys.executable, "-m", "fruitstand", "reliability", "--scenario", str(scenario), "--tier", "brief",
         "--repository", str(repository), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    row = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, row
    assert row["passed"], row
    assert row["complaints"] == row["left_behind"] == []
    assert row["counters"][0]["gateway_answered"] == row["counters"][0]["callers_answered"] > 0

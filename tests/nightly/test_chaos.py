"""Thirty fault-injection scenarios against a live stack; docs/reliability.md is the table of a full run."""

import os
from pathlib import Path
from typing import Any

import pytest

from fruitstand.artefacts import write_json
from tests.nightly.chaos.material import Material
from tests.nightly.chaos.scenarios import SCENARIOS
from tests.nightly.chaos.scoreboard import run_scenario
from tests.nightly.chaos.setting import TIERS

TIER = os.environ.get("FRUITSTAND_CHAOS_TIER", "brief")
OUT = os.environ.get("FRUITSTAND_CHAOS_OUT")
LATENCY_LIMIT_MISSED = {12}
"""Misses a limit on latency on two cores with the Python backends; not seen to pass with the C++ one."""
TIMEOUT_S = {"brief": 600, "ci": 1800, "full": 7200}


def _scenario(number: int) -> Any:
    """A parameter; its id is found with `-k scenario_17`."""
    marks = [pytest.mark.xfail(reason="misses a limit on latency", strict=False)]
    return pytest.param(
        number, id=f"scenario_{number}", marks=marks if number in LATENCY_LIMIT_MISSED else []
    )


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Data, runs and a repository with two versions, each made when a scenario first asks for it."""
    return Material(tmp_path_factory.mktemp("chaos") / "material")


@pytest.mark.nightly
@pytest.mark.timeout(TIMEOUT_S[TIER])
@pytest.mark.parametrize("number", [_scenario(number) for number in sorted(SCENARIOS)])
def test_the_stack_survives(number: int, repository: Path, material: Material, tmp_path: Path) -> None:
    """The scenario's limits hold, counters agree with the callers' ledger, and no process or file is left."""
    served = material.repository if TIER != "brief" else repository
    row = run_scenario(number, served, material, TIERS[TIER], tmp_path)
    if OUT:
        write_json(Path(OUT, f"scenario{number}.json"), row.to_json(tmp_path))
    assert row.complaints == []
    assert row.left_behind == []
    assert [one for one in row.claims if not one.held] == [], row.numbers

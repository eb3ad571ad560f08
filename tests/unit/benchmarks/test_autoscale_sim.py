import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.autoscale_sim import LOAD_SHARE, RULE, curves, read_knee, read_rule, simulate
from fruitstand.errors import UsageError

CAPACITY = 1500.0
LIMITS = {"capacity": CAPACITY, "max_queue": 1024.0, "limit_s": 0.5}


def test_a_steady_load_below_the_capacity_needs_no_other_replica_and_misses_nothing() -> None:
    """Two replicas at 60 %."""
    rule = read_rule()
    row = simulate(curves(CAPACITY, rule)["steady"], startup_s=45, rule=rule, **LIMITS)
    assert row["within_limit"] == 1
    assert row["most_replicas"] == rule.min_replicas


def test_what_no_replica_can_take_is_refused_by_arithmetic() -> None:
    """Four times what the greatest number of replicas carries: three quarters are not answered."""
    rule = replace(read_rule(), max_replicas=2)
    row = simulate(lambda _: 4 * 2 * CAPACITY, startup_s=45, rule=rule, **LIMITS)
    assert row["refused"] == pytest.approx(0.75, abs=0.01)
    assert row["within_limit"] + row["late"] + row["refused"] == pytest.approx(1)


def test_a_longer_start_misses_more() -> None:
    """A step to three times the load."""
    rule = read_rule()
    offered = curves(CAPACITY, rule)["step_3x"]
    shares = [simulate(offered, startup_s=s, rule=rule, **LIMITS)["within_limit"] for s in (0, 45, 300)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[2]


@pytest.mark.parametrize("curve", ["day", "ramp_2x_in_10_min"])
def test_the_deployed_rule_holds_the_objective_where_one_on_waiting_alone_does_not(curve: str) -> None:
    """With replicas that take five minutes: the reason for its trigger on load."""
    rule = read_rule()
    offered = curves(CAPACITY, rule)[curve]
    alone = replace(rule, load_share=0.0)
    assert simulate(offered, startup_s=300, rule=rule, **LIMITS)["within_limit"] >= 0.99
    assert simulate(offered, startup_s=300, rule=alone, **LIMITS)["within_limit"] < 0.99


def test_the_number_of_replicas_stays_within_the_rules_bounds() -> None:
    """Whatever the load does."""
    rule = read_rule()
    row = simulate(lambda t: 1e5 * abs(math.sin(t)), startup_s=10, rule=rule, **LIMITS)
    assert row["most_replicas"] <= rule.max_replicas


def test_the_deployed_threshold_is_that_of_the_capacity_in_the_documents() -> None:
    """Images/s in the manifest, a share of the capacity in the simulation."""
    triggers = yaml.safe_load(RULE.read_text())["spec"]["triggers"]
    (threshold,) = (one["metadata"]["threshold"] for one in triggers if one["name"] == "load")
    assert float(threshold) == LOAD_SHARE * CAPACITY


def test_the_capacity_is_the_knee_of_a_ramp_that_reached_it(tmp_path: Path) -> None:
    """The end of what was measured is none."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"knees": [{"images_per_s": 321.0, "reached": True}]}))
    assert read_knee(path) == 321
    for knees in ([{"images_per_s": 321.0, "reached": False}], []):
        path.write_text(json.dumps({"knees": knees}))
        with pytest.raises(UsageError, match="no knee"):
            read_knee(path)

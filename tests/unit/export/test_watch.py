"""When a new version is worse than the one beside it."""

import pytest

from export.publish.canary_watch import worse
from fruitstand.network.statistics import ModelCounters


def counters(answered: int, failed: int, busy_us: int) -> ModelCounters:
    """Of a server; `busy_us` is the total time of all answered calls."""
    return ModelCounters(num_requests=answered, num_failed=failed, request_ns=busy_us * 1000)


OLD = counters(1000, 10, 1000 * 5_000)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        pytest.param(counters(100, 1, 100 * 5_500), "", id="as_good"),
        pytest.param(counters(100, 0, 100 * 1_000), "", id="better"),
        pytest.param(counters(95, 5, 95 * 5_000), "fails 5.0% of its calls", id="fails"),
        pytest.param(counters(0, 60, 0), "fails 100.0%", id="answers_nothing"),
        pytest.param(counters(100, 1, 100 * 7_500), "takes 7.5 ms", id="half_as_slow_again"),
    ],
)
def test_a_version_is_held_against_the_one_beside_it(new: ModelCounters, reason: str) -> None:
    """Failures and latency at the same time, under the same load."""
    assert worse(new, OLD).startswith(reason)
    assert bool(worse(new, OLD)) is bool(reason)


def test_nothing_beside_it_is_no_reason() -> None:
    """A quiet old version has no latency to compare with."""
    assert worse(counters(100, 0, 100 * 7_500), counters(3, 0, 3 * 100)) == ""

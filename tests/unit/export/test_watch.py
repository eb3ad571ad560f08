"""When a new version is worse than the one beside it."""

import pytest

from export.publish.canary_watch import Seen, worse

OLD = Seen(answered=1000, failed=10, busy_us=1000 * 5_000)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        pytest.param(Seen(100, 1, 100 * 5_500), "", id="as_good"),
        pytest.param(Seen(100, 0, 100 * 1_000), "", id="better"),
        pytest.param(Seen(95, 5, 95 * 5_000), "fails 5.0% of its calls", id="fails"),
        pytest.param(Seen(0, 60, 0), "fails 100.0%", id="answers_nothing"),
        pytest.param(Seen(100, 1, 100 * 7_500), "takes 7.5 ms", id="half_as_slow_again"),
    ],
)
def test_a_version_is_held_against_the_one_beside_it(new: Seen, reason: str) -> None:
    """Failures and latency at the same time, under the same load."""
    assert worse(new, OLD).startswith(reason)
    assert bool(worse(new, OLD)) is bool(reason)


def test_nothing_beside_it_is_no_reason() -> None:
    """A quiet old version has no latency to compare with."""
    assert worse(Seen(100, 0, 100 * 7_500), Seen(3, 0, 3 * 100)) == ""

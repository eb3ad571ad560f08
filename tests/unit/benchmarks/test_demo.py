import pytest

from fruitstand.errors import GateFailed
from fruitstand.machine.provenance import provenance
from loadtests.demo import _check

GOOD = {"top1_offline": 0.995, "top1_served": 0.9935, "num_images": 3495, "server_version": "2.51.0"}


def test_a_demo_succeeds_when_the_served_model_is_the_trained_one() -> None:
    """Within 0.002, or within one image of a small test split."""
    _check(GOOD)
    _check({**GOOD, "num_images": 100, "top1_offline": 1.0, "top1_served": 0.99})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"top1_served": 0.9925}, id="accuracy_lost"),
        pytest.param({"top1_served": 0.998}, id="accuracy_too_good"),
        pytest.param({"server_version": "2.50.0"}, id="another_server"),
    ],
)
def test_a_demo_fails_when_something_else_is_served(change: dict) -> None:
    """The exit status says so, not only the table."""
    with pytest.raises(GateFailed):
        _check({**GOOD, **change})


def test_a_result_says_where_when_and_how_it_was_measured() -> None:
    """Hardware, date, commit and command."""
    found = provenance()
    assert set(found) == {"hardware", "date", "commit", "command"}
    assert found["hardware"]["num_cores"] >= 1
    assert found["hardware"]["cpu"]

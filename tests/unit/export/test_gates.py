import json
import math

import pytest

from export.gates.gate import at_least, at_most, share_or_one_image
from fruitstand.repository.tolerances import all_but_share_or_one_image


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        pytest.param(at_most("loss", 0.002, 0.002), True, id="most_on_the_limit"),
        pytest.param(at_most("loss", 0.0021, 0.002), False, id="most_above"),
        pytest.param(at_most("loss", -1, 0.002), True, id="most_below"),
        pytest.param(at_least("agreement", 0.995, 0.995), True, id="least_on_the_limit"),
        pytest.param(at_least("agreement", 0.9949, 0.995), False, id="least_below"),
        pytest.param(at_most("diff", math.nan, 1), False, id="most_nan"),
        pytest.param(at_least("agreement", math.nan, 0), False, id="least_nan"),
        pytest.param(at_most("diff", math.inf, 1), False, id="most_infinite"),
    ],
)
def test_a_gate_passes_on_the_right_side_of_its_limit(gate, passed: bool) -> None:
    """The limit itself passes, NaN never; all of it is JSON."""
    assert gate.passed is passed
    written = json.loads(json.dumps(gate.to_json(), allow_nan=False))
    assert written["passed"] is passed
    assert (written["value"] is None) is not math.isfinite(gate.value)
    assert gate.kind in ("at_most", "at_least")


def test_a_gate_says_name_number_and_limit() -> None:
    """In one line, and what is wrong where the number does not say it."""
    assert str(at_least("agreement", 0.99, 0.995)) == "agreement: got 0.99, allowed at least 0.995"
    assert str(at_most("parts", 1, 0, detail="no input")) == "parts: got 1, allowed at most 0 (no input)"


@pytest.mark.parametrize("num_images", [3, 7, 12, 49, 199, 200, 201, 1523])
def test_one_image_is_allowed_only_where_the_share_is_less_than_one(num_images: int) -> None:
    """A small set may lose one image and no second; a large one the share and no image more."""
    allowed = max(1, int(0.005 * num_images + 1e-9))
    for lost in range(4 + allowed):
        agreement = at_least(
            "a", (num_images - lost) / num_images, all_but_share_or_one_image(0.995, num_images)
        )
        loss = at_most("l", lost / num_images, share_or_one_image(0.005, num_images))
        assert agreement.passed is (lost <= allowed)
        assert loss.passed is (lost <= allowed)

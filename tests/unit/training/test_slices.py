from math import sqrt

import numpy as np
import pytest

from fruitstand.manifest import ManifestRow
from training.evaluate.slices import slice_accuracies, wilson_interval


@pytest.mark.parametrize(
    ("num_right", "num", "expected"),
    [
        pytest.param(8, 10, (0.4902, 0.9433), id="some"),
        pytest.param(10, 10, (0.7225, 1.0), id="all"),
        pytest.param(0, 10, (0.0, 0.2775), id="none"),
    ],
)
def test_the_interval_is_wilsons(num_right: int, num: int, expected: tuple[float, float]) -> None:
    """Each bound is a share from which the measured one is 1.96 standard errors away, or the end."""
    bounds = wilson_interval(num_right, num)
    assert bounds == pytest.approx(expected, abs=1e-4)
    for bound in bounds:
        if bound not in (0, 1):
            error = sqrt(bound * (1 - bound) / num)
            assert abs(num_right / num - bound) == pytest.approx(1.959964 * error, rel=1e-5)


def test_slices_count_every_image_once_each_way() -> None:
    """By fruit, by variety, by brightness; few images are flagged."""
    rows = [
        ManifestRow(f"{n}", "", "x", "Apple 1" if n < 40 else "Apple 2", "", n, "test") for n in range(50)
    ]
    rows += [ManifestRow(f"k{n}", "", "x", "Kiwi", "", n, "test") for n in range(30)]
    right = np.array([True] * 40 + [False] * 10 + [True] * 15 + [False] * 15)
    light = np.array([10.0] * 50 + [128.0] * 30, np.float32)
    slices = slice_accuracies(rows, light, right, ~right)
    assert {
        kind: sum(one.num_images for one in members) for kind, members in slices.items()
    } == dict.fromkeys(("fruit", "variety", "brightness"), 80)
    assert [(one.name, one.top1) for one in slices["fruit"]] == [("Kiwi", 0.5), ("Apple", 0.8)]
    assert [(one.name, one.small) for one in slices["variety"]] == [
        ("Apple 2", True),
        ("Kiwi", False),
        ("Apple 1", False),
    ]
    assert [one.name for one in slices["brightness"]] == ["0 to 63", "128 to 159"]
    assert slices["fruit"][1].nearest_neighbour == pytest.approx(0.2)
    assert slices["fruit"][1].interval == list(wilson_interval(40, 50))

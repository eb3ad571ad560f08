"""Accuracy of parts of a split: each fruit, each variety, each range of brightness."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from fruitstand.manifest import ManifestRow
from training.data.class_folders import fruit_of

SMALL = 30
"""Images; with fewer the interval is so wide that the slice is flagged."""
BRIGHTNESS_EDGES = (0, 64, 96, 128, 160, 256)
"""Luma of the fruit; fixed, so that two data sets have the same slices."""
Z_95 = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The accuracy of a part of a split."""

    name: str
    num_images: int
    top1: float
    interval: list[float]
    """Bounds of `top1` with 95 % confidence."""
    nearest_neighbour: float
    """Top-1 of the nearest neighbour."""
    small: bool
    """Fewer than `SMALL` images."""


def wilson_interval(num_right: int, num: int) -> tuple[float, float]:
    """The range that holds the true share with 95 % confidence, each image taken as independent.

    Source:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    share, extra = num_right / num, Z_95**2 / num
    middle = (share + extra / 2) / (1 + extra)
    half = Z_95 / (1 + extra) * sqrt(share * (1 - share) / num + extra / (4 * num))
    # Rounded, so that all right is at most 1 and none right at least 0.
    return round(max(0.0, middle - half), 9), round(min(1.0, middle + half), 9)


def slice_accuracies(
    rows: Sequence[ManifestRow], brightness: np.ndarray, right: np.ndarray, nearest_right: np.ndarray
) -> dict[str, list[Slice]]:
    """The accuracy of each slice.

    Args:
        rows: N images.
        brightness: (N,) float32, 0 to 255.
        right: (N,) bool, whether the answer is right.
        nearest_right: (N,) bool, whether the nearest neighbour's is.

    Returns:
        `fruit` and `variety`, the least accurate first, and `brightness`, the darkest first.
    """
    ranges = np.searchsorted(BRIGHTNESS_EDGES, brightness, side="right") - 1
    names = {
        "fruit": [fruit_of(row.object) for row in rows],
        "variety": [row.object for row in rows],
        "brightness": [f"{BRIGHTNESS_EDGES[i]} to {BRIGHTNESS_EDGES[i + 1] - 1}" for i in ranges],
    }
    slices = {kind: _slices(of_rows, right, nearest_right) for kind, of_rows in names.items()}
    for kind in ("fruit", "variety"):
        slices[kind].sort(key=lambda one: (one.top1, one.name))
    slices["brightness"].sort(key=lambda one: int(one.name.split()[0]))
    return slices


def _slices(names: list[str], right: np.ndarray, nearest_right: np.ndarray) -> list[Slice]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        members[name].append(index)
    return [
        Slice(
            name=name,
            num_images=len(inside),
            top1=float(right[inside].mean()),
            interval=list(wilson_interval(int(right[inside].sum()), len(inside))),
            nearest_neighbour=float(nearest_right[inside].mean()),
            small=len(inside) < SMALL,
        )
        for name, inside in members.items()
    ]

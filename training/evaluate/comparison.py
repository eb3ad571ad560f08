"""Put an accuracy into context: two baselines without training, confidence intervals, and accuracy by slice.

Neighbouring frames of a film are so similar that a nearest neighbour on 12x12 thumbnails gets nearly all of
Fruits-360's own Test right. A model's accuracy there means little without this baseline.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from fruitstand.errors import DataError
from fruitstand.manifest import ManifestRow, PreparedData
from training.data.class_folders import fruit_of
from training.data.neighbours import nearest_neighbours

SMALL = 30
"""Slices with fewer images are flagged, because their interval is wide."""
BRIGHTNESS_EDGES = (0, 64, 96, 128, 160, 256)
"""Bounds of the brightness slices in luma of the foreground; fixed, so that data sets can be compared."""
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
    """Top-1 accuracy of the nearest-neighbour baseline."""
    small: bool
    """Fewer than `SMALL` images."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The answers of the baselines for one split."""

    majority: str
    """The most common class of the train split."""
    nearest: list[str]
    """For each image of the split, the class of its nearest train image."""
    num_train: int
    """Number of train images."""


def find_baseline(data: PreparedData, split: str, small: np.ndarray) -> Baseline:
    """Classify every image of a split without a model.

    Args:
        data: the prepared folder.
        split: train, val or test; in train, an image is not its own nearest neighbour.
        small: (N, D) uint8 thumbnails of all rows.

    Raises:
        DataError: there is no train split.
    """
    train = np.array([index for index, row in enumerate(data.rows) if row.split == "train"], np.int64)
    if len(train) < 2:
        raise DataError(f"{data.directory}: no train split to compare with; prepare the data again")
    queries = np.array([index for index, row in enumerate(data.rows) if row.split == split], np.int64)
    itself = np.arange(len(train)) if split == "train" else None
    nearest = nearest_neighbours(small[queries], small[train], excluded=itself)
    counts = Counter(data.rows[index].label for index in train)
    majority = min(counts, key=lambda label: (-counts[label], label))
    return Baseline(majority, [data.rows[index].label for index in train[nearest]], len(train))


def wilson_interval(num_right: int, num: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, assuming independent images.

    Source:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    share, extra = num_right / num, Z_95**2 / num
    middle = (share + extra / 2) / (1 + extra)
    half = Z_95 / (1 + extra) * sqrt(share * (1 - share) / num + extra / (4 * num))
    # Rounding removes floating-point errors at the bounds 0 and 1.
    return round(max(0.0, middle - half), 9), round(min(1.0, middle + half), 9)


def slice_accuracies(
    rows: Sequence[ManifestRow], brightness: np.ndarray, right: np.ndarray, nearest_right: np.ndarray
) -> dict[str, list[Slice]]:
    """The accuracy of each slice.

    Args:
        rows: N images.
        brightness: (N,) float32, 0 to 255.
        right: (N,) bool, whether the model's answer is right.
        nearest_right: (N,) bool, whether the nearest neighbour's answer is right.

    Returns:
        `fruit` and `variety`, the least accurate first; `brightness`, the darkest first.
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

"""What needs no training: the commonest class, and the nearest neighbour of 12x12 thumbnails.

A model's accuracy says little without them: neighbouring frames of a film are so alike that a nearest
neighbour finds nearly all of Fruits-360's own Test.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from fruitstand.errors import DataError
from fruitstand.manifest import PreparedData
from training.data.neighbours import nearest_neighbours


@dataclass(frozen=True, slots=True)
class Baseline:
    """The answers for one split."""

    majority: str
    """The commonest class of the train split."""
    nearest: list[str]
    """For each image of the split the class of the train image that is nearest to it."""
    num_train: int
    """Train images."""


def find_baseline(data: PreparedData, split: str, small: np.ndarray) -> Baseline:
    """Answer every image of a split without a model.

    Args:
        data: the prepared folder.
        split: train, val or test; in train an image's nearest neighbour is another one than itself.
        small: (N, D) uint8 thumbnails of all its rows.

    Raises:
        DataError: no train split.
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

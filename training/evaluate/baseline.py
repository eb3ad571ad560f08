"""What needs no training: the commonest class, and the nearest neighbour of 12x12 thumbnails.

A model's accuracy says little without them: neighbouring frames of a film are so alike that a nearest
neighbour finds nearly all of Fruits-360's own Test.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from fruitstand.errors import DataError
from fruitstand.manifest import PreparedData
from fruitstand.progress import track

QUERIES_AT_ONCE = 1024
REFERENCES_AT_ONCE = 8192


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


def nearest_neighbours(
    queries: np.ndarray, references: np.ndarray, *, excluded: np.ndarray | None = None
) -> np.ndarray:
    """The nearest reference of each query by Euclidean distance, the first of equals.

    Args:
        queries: (Q, D) uint8.
        references: (R, D) uint8.
        excluded: (Q,) for each query a reference that may not be its answer.

    Returns:
        (Q,) int64. At no time are more than two blocks held as floats, so memory does not grow with Q or R.
    """
    result = np.zeros(len(queries), np.int64)
    starts = range(0, len(queries), QUERIES_AT_ONCE)
    for start in track(starts, total=len(starts), description="nearest neighbour"):
        block = _centred(queries[start : start + QUERIES_AT_ONCE])
        smallest = np.full(len(block), np.inf, np.float32)
        for first in range(0, len(references), REFERENCES_AT_ONCE):
            others = _centred(references[first : first + REFERENCES_AT_ONCE])
            # Half of the squared distance, less what is the same for every reference.
            distances = (others**2).sum(axis=1) / 2 - block @ others.T
            if excluded is not None:
                columns = excluded[start : start + len(block)] - first
                inside = np.flatnonzero((columns >= 0) & (columns < len(others)))
                distances[inside, columns[inside]] = np.inf
            at = distances.argmin(axis=1)
            values = distances[np.arange(len(block)), at]
            nearer = values < smallest
            smallest[nearer] = values[nearer]
            result[start : start + len(block)][nearer] = at[nearer] + first
    return result


def _centred(levels: np.ndarray) -> np.ndarray:
    """Levels around 0, so that sums of their products are whole numbers that float32 holds exactly."""
    return levels.astype(np.float32) - 128

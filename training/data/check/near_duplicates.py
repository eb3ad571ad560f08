"""Find near-duplicate images among all pairs, in bounded memory.

Two images are near duplicates if their dHashes differ in at most `MAX_DISTANCE` of 64 bits and their
thumbnails by at most `MAX_DIFFERENCE` levels on average. The hash compares shape and shading but not colour;
the thumbnails separate a red apple from a green one. Pairs are counted and not kept, because neighbouring
frames of films alone make millions of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fruitstand.images.thumbnail import MAX_DIFFERENCE
from training.data.check.survey import Survey
from training.data.class_folders import SPLITS
from training.data.neighbours import Ints, close_pairs

MAX_DISTANCE = 6
"""Bits of 64."""
PAIRS_AT_ONCE = 1 << 15


@dataclass(frozen=True, slots=True)
class Pair:
    """Two near duplicates."""

    first: int
    """Row number."""
    second: int
    """Row number."""
    distance: int
    """dHash bits that differ."""
    difference: float
    """Mean difference of the thumbnails, 0 to 255."""


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """The near duplicates among N images of G groups."""

    num_pairs: Ints
    """(3, 3) pairs between splits, in the order of `SPLITS`; each pair counts once, above the diagonal."""
    in_split: npt.NDArray[np.bool_]
    """(N, 3), whether an image has a near duplicate in each split."""
    in_group: npt.NDArray[np.bool_]
    """(N, G), whether an image has a near duplicate in each group."""
    closest_groups: dict[tuple[int, int], Pair]
    """The closest pair between two groups, keyed by their numbers with the lower one first."""
    closest_leaks: dict[int, Pair]
    """For each group, the closest pair of one of its test images (`first`) and an image outside Test."""


def find_near_duplicates(
    survey: Survey, *, splits: Sequence[str], groups: Sequence[int], num_groups: int
) -> NearDuplicates:
    """Compare every readable image with every other one.

    Args:
        survey: hashes and thumbnails of the N images.
        splits: the split of each image.
        groups: the group of each image, 0 to `num_groups` - 1.
        num_groups: G.
    """
    found = _Tally(
        np.array([SPLITS.index(split) for split in splits], np.int64), np.array(groups, np.int64), num_groups
    )
    readable = np.array([index for index, look in enumerate(survey.looks) if look is not None], np.int64)
    thumbnails = survey.thumbnails.reshape(len(survey.looks), -1).astype(np.int16)
    for pairs in close_pairs(survey.hashes[readable], MAX_DISTANCE):
        for start in range(0, len(pairs[0]), PAIRS_AT_ONCE):
            first, second, distance = (part[start : start + PAIRS_AT_ONCE] for part in pairs)
            first, second = readable[first], readable[second]
            difference = np.abs(thumbnails[first] - thumbnails[second]).mean(axis=1)
            near = difference <= MAX_DIFFERENCE
            found.add(first[near], second[near], distance[near], difference[near])
    return found.result()


class _Tally:
    """Accumulates counts and the closest pairs."""

    def __init__(self, splits: Ints, groups: Ints, num_groups: int) -> None:
        self._splits, self._groups, self._num_groups = splits, groups, num_groups
        self._num_pairs = np.zeros(len(SPLITS) ** 2, np.int64)
        self._in_split = np.zeros((len(splits), len(SPLITS)), np.bool_)
        self._in_group = np.zeros((len(splits), num_groups), np.bool_)
        self._closest_groups: dict[int, Pair] = {}
        self._closest_leaks: dict[int, Pair] = {}

    def add(self, first: Ints, second: Ints, distance: Ints, difference: npt.NDArray[np.float64]) -> None:
        """Add some pairs; ties are broken by row number, so the order of calls does not matter."""
        first, second = np.minimum(first, second), np.maximum(first, second)
        splits, groups = self._splits, self._groups
        low, high = np.sort((splits[first], splits[second]), axis=0)
        self._num_pairs += np.bincount(low * len(SPLITS) + high, minlength=len(self._num_pairs))
        for one, other in ((first, second), (second, first)):
            self._in_split[one, splits[other]] = True
            self._in_group[one, groups[other]] = True
        test = SPLITS.index("test")
        for one, other in ((first, second), (second, first)):
            leak = (splits[one] == test) & (splits[other] != test)
            _keep(self._closest_leaks, groups[one], leak, one, other, distance, difference)
            lower = groups[one] < groups[other]
            key = groups[one] * self._num_groups + groups[other]
            _keep(self._closest_groups, key, lower, one, other, distance, difference)

    def result(self) -> NearDuplicates:
        """The totals."""
        closest = {divmod(key, self._num_groups): pair for key, pair in sorted(self._closest_groups.items())}
        leaks = dict(sorted(self._closest_leaks.items()))
        square = self._num_pairs.reshape(len(SPLITS), len(SPLITS))
        return NearDuplicates(square, self._in_split, self._in_group, closest, leaks)


def _keep(
    best: dict[int, Pair],
    keys: Ints,
    chosen: npt.NDArray[np.bool_],
    first: Ints,
    second: Ints,
    distance: Ints,
    difference: npt.NDArray[np.float64],
) -> None:
    """Update `best` with the closest of the chosen pairs for each key."""
    chosen_at = np.flatnonzero(chosen)
    order = chosen_at[np.lexsort((second[chosen_at], first[chosen_at], difference[chosen_at]))]
    for key, at in zip(*np.unique(keys[order], return_index=True), strict=True):
        index = order[at]
        pair = Pair(int(first[index]), int(second[index]), int(distance[index]), float(difference[index]))
        old = best.get(int(key))
        if old is None or _rank(pair) < _rank(old):
            best[int(key)] = pair


def _rank(pair: Pair) -> tuple[float, int, int]:
    return pair.difference, pair.first, pair.second

"""Which images are alike: the nearest of each, and all pairs that differ in a few bits; in bounded memory.

Both are products of blocks of rows. Levels around 0 make them sums of whole numbers, exact in float32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fruitstand.progress import track

QUERIES_AT_ONCE = 1024
REFERENCES_AT_ONCE = 4096
HASH_BITS = 64

Ints = npt.NDArray[np.int64]


class _Block(NamedTuple):
    """Some queries times some references."""

    start: int
    """Number of the first query."""
    first: int
    """Number of the first reference."""
    squares: np.ndarray
    """(R,) float32, of the references."""
    products: np.ndarray
    """(Q, R) float32."""


def _blocks(queries: np.ndarray, references: np.ndarray) -> Iterator[_Block]:
    """All queries times all references, (Q, D) and (R, D) uint8."""
    starts = range(0, len(queries), QUERIES_AT_ONCE)
    for start in track(starts, total=len(starts), description="compare"):
        block = queries[start : start + QUERIES_AT_ONCE].astype(np.float32) - 128
        for first in range(0, len(references), REFERENCES_AT_ONCE):
            others = references[first : first + REFERENCES_AT_ONCE].astype(np.float32) - 128
            yield _Block(start, first, (others**2).sum(axis=1), block @ others.T)


def nearest_neighbours(queries: np.ndarray, references: np.ndarray, *, excluded: Ints | None = None) -> Ints:
    """The nearest reference of each query by Euclidean distance, the first of equals.

    Args:
        queries: (Q, D) uint8.
        references: (R, D) uint8.
        excluded: (Q,) for each query a reference that may not be its answer.

    Returns:
        (Q,) int64. At no time are more than two blocks held as floats, so memory does not grow with Q or R.
    """
    result = np.zeros(len(queries), np.int64)
    smallest = np.full(len(queries), np.inf, np.float32)
    for start, first, squares, products in _blocks(queries, references):
        inside = slice(start, start + len(products))
        # Half of the squared distance, less what is the same for every reference.
        distances = squares / 2 - products
        if excluded is not None:
            columns = excluded[inside] - first
            rows = np.flatnonzero((columns >= 0) & (columns < len(squares)))
            distances[rows, columns[rows]] = np.inf
        at = distances.argmin(axis=1)
        values = distances[np.arange(len(at)), at]
        nearer = values < smallest[inside]
        smallest[inside][nearer] = values[nearer]
        result[inside][nearer] = at[nearer] + first
    return result


def close_pairs(hashes: npt.NDArray[np.uint64], max_distance: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """All pairs of hashes that differ in at most `max_distance` bits.

    Args:
        hashes: (N,) uint64.
        max_distance: bits.

    Yields:
        First and second positions and distances in bits, (M,) each; every pair once, the lower first.
    """
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    # One level to either side of the middle: a product is the number of equal bits less that of the others.
    levels = bits * 2 + 127
    for start, other, _, agreement in _blocks(levels, levels):
        first, second = np.nonzero(agreement >= HASH_BITS - 2 * max_distance)
        distance = ((HASH_BITS - agreement[first, second]) / 2).astype(np.int64)
        first, second = first + start, second + other
        keep = first < second
        yield first[keep], second[keep], distance[keep]

"""Find similar images in bounded memory: nearest neighbours, and all pairs whose hashes differ in few bits.

Both multiply blocks of rows. Values are shifted to be around 0, so the sums of whole numbers are exact in
float32.
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
    """The products of a block of queries and a block of references."""

    start: int
    """Index of the first query."""
    first: int
    """Index of the first reference."""
    squares: np.ndarray
    """(R,) float32, squared norms of the references."""
    products: np.ndarray
    """(Q, R) float32, dot products."""


def _blocks(queries: np.ndarray, references: np.ndarray) -> Iterator[_Block]:
    """Multiply all queries with all references, (Q, D) and (R, D) uint8, block by block."""
    starts = range(0, len(queries), QUERIES_AT_ONCE)
    for start in track(starts, total=len(starts), description="compare"):
        block = queries[start : start + QUERIES_AT_ONCE].astype(np.float32) - 128
        for first in range(0, len(references), REFERENCES_AT_ONCE):
            others = references[first : first + REFERENCES_AT_ONCE].astype(np.float32) - 128
            yield _Block(start, first, (others**2).sum(axis=1), block @ others.T)


def nearest_neighbours(queries: np.ndarray, references: np.ndarray, *, excluded: Ints | None = None) -> Ints:
    """Find the nearest reference of each query by Euclidean distance; of equals, the one that comes first.

    Memory does not grow with Q or R: at most two blocks are held as floats.

    Args:
        queries: (Q, D) uint8.
        references: (R, D) uint8.
        excluded: (Q,) for each query, the index of a reference to leave out, such as the query itself.

    Returns:
        (Q,) int64.
    """
    result = np.zeros(len(queries), np.int64)
    smallest = np.full(len(queries), np.inf, np.float32)
    for start, first, squares, products in _blocks(queries, references):
        inside = slice(start, start + len(products))
        # Half of the squared distance, without the query's own norm, which does not change the order.
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
    """Find all pairs of hashes that differ in at most `max_distance` bits.

    Args:
        hashes: (N,) uint64.
        max_distance: bits.

    Yields:
        First index, second index and distance in bits, (M,) each; every pair once, with first < second.
    """
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    # _blocks subtracts 128, so bits become -1 and 1: a product is (number of equal bits) - (number of
    # others).
    levels = bits * 2 + 127
    for start, other, _, agreement in _blocks(levels, levels):
        first, second = np.nonzero(agreement >= HASH_BITS - 2 * max_distance)
        distance = ((HASH_BITS - agreement[first, second]) / 2).astype(np.int64)
        first, second = first + start, second + other
        keep = first < second
        yield first[keep], second[keep], distance[keep]

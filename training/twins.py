"""Classes that show one fruit under two names: the same files, or the same film cut out again.

Fruits-360 has both. "Apple worm 1" holds the files of "Apple 22"; "Cherry 4" holds the films of "Cherry 2",
every frame cut out a second time. Nobody can tell such classes apart: whoever keeps both measures a coin.
"""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass

import numpy as np

THUMBNAIL_SIDE = 12
"""Pixels. Source: on 12x12 thumbnails a nearest neighbour finds 96.7 % of Fruits-360's own Test split."""
MAX_QUERIES = 64
"""Images of each class that are looked up."""
MIN_SHARE = 1 / 3
"""Of a class's images whose nearest neighbour is in the other class, in both directions; half is a coin."""
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Twin:
    """A class to be left out, and the one that shows the same."""

    label: str
    same_as: str
    num_images: int
    shared: float
    """Share of its images whose nearest neighbour is in the other class, 0 to 1."""

    def to_dict(self) -> dict[str, object]:
        """As JSON-ready values."""
        return asdict(self)


def thumbnail(pixels_hwc_u8: np.ndarray) -> np.ndarray:
    """Shrink an image to what is compared.

    Args:
        pixels_hwc_u8: (H, W, 3) uint8, at least `THUMBNAIL_SIDE` on both sides.

    Returns:
        (THUMBNAIL_SIDE ** 2 * 3,) uint8: the mean of each cell.
    """
    side = THUMBNAIL_SIDE
    height, width = (n // side * side for n in pixels_hwc_u8.shape[:2])
    cells = pixels_hwc_u8[:height, :width].reshape(side, height // side, side, width // side, 3)
    return cells.mean(axis=(1, 3)).astype(np.uint8).ravel()


def find_twins(thumbnails: np.ndarray, labels: list[str]) -> list[Twin]:
    """Find the classes that a nearest neighbour cannot tell from another one.

    Args:
        thumbnails: (N, D) uint8.
        labels: N class names.

    Returns:
        The classes to be left out; of two, the alphabetically first stays.
    """
    names = sorted(set(labels))
    index = np.array([names.index(label) for label in labels])
    images = thumbnails.astype(np.float32)
    images -= images.mean(axis=0)
    squares = (images**2).sum(axis=1)
    neighbours: dict[int, Counter[int]] = defaultdict(Counter)
    queries = np.concatenate([_spread(np.flatnonzero(index == number)) for number in range(len(names))])
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        distances = squares - 2 * images[block] @ images.T
        distances[np.arange(len(block)), block] = np.inf
        for query, nearest in zip(block, distances.argmin(axis=1), strict=True):
            neighbours[index[query]][index[nearest]] += 1
    twins: list[Twin] = []
    dropped: set[int] = set()
    for second in range(len(names)):
        for first in range(second):
            shares = [neighbours[a][b] / neighbours[a].total() for a, b in ((first, second), (second, first))]
            if first not in dropped and min(shares) >= MIN_SHARE:
                count = int((index == second).sum())
                twins.append(Twin(names[second], names[first], count, round(shares[1], 3)))
                dropped.add(second)
                break
    return twins


def _spread(positions: np.ndarray) -> np.ndarray:
    """At most `MAX_QUERIES` of them, evenly."""
    if len(positions) <= MAX_QUERIES:
        return positions
    return positions[np.linspace(0, len(positions) - 1, MAX_QUERIES).round().astype(int)]

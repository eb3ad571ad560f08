"""Classes that show one fruit under two names: the same films, cut out a second time.

In Fruits-360 "Cherry 4" holds the films of "Cherry 2", every frame with other bytes. Nobody can tell such
classes apart: whoever keeps both measures a coin. (Equal bytes are the business of `training.data.twins`.)
"""

from collections import Counter, defaultdict

import numpy as np

THUMBNAIL_SIDE = 12
"""Pixels. Source: on 12x12 thumbnails a nearest neighbour finds 96.7 % of Fruits-360's own Test split."""
MAX_QUERIES = 64
"""Images of each class that are looked up."""
MIN_SHARE = 1 / 3
"""Of a class's images whose nearest neighbour is in the other class, in both directions; half is a coin."""
BLOCK = 256


def thumbnail(pixels_hwc_u8: np.ndarray) -> np.ndarray:
    """Shrink an image to what is compared.

    Args:
        pixels_hwc_u8: (H, W, 3) uint8, at least `THUMBNAIL_SIDE` on both sides.

    Returns:
        (THUMBNAIL_SIDE ** 2 * 3,) uint8: the mean of each cell.
    """
    side = THUMBNAIL_SIDE
    height, width = (n // side for n in pixels_hwc_u8.shape[:2])
    whole = pixels_hwc_u8[: side * height, : side * width]
    # One axis after the other: numpy's mean over both takes as long as the decoding.
    rows = whole.reshape(side, height, side * width, 3).sum(axis=1, dtype=np.uint32)
    cells = rows.reshape(side, side, width, 3).sum(axis=2)
    return (cells // (height * width)).astype(np.uint8).ravel()


def find_same_films(thumbnails: np.ndarray, labels: list[str]) -> list[dict[str, object]]:
    """Find the classes that a nearest neighbour cannot tell from another one.

    Args:
        thumbnails: (N, D) uint8.
        labels: N class names.

    Returns:
        For each class to be left out its name, whose films it shows, its images, and the share of them whose
        nearest neighbour is in the other class. Of two, the alphabetically first stays.
    """
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    index = np.array([numbers[label] for label in labels])
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
    twins: list[dict[str, object]] = []
    dropped: set[int] = set()
    for second in range(len(names)):
        for first in range(second):
            shares = [neighbours[a][b] / neighbours[a].total() for a, b in ((first, second), (second, first))]
            if first not in dropped and min(shares) >= MIN_SHARE:
                twins.append(
                    {
                        "object": names[second],
                        "label": names[second],
                        "same_as": names[first],
                        "num_images": int((index == second).sum()),
                        "shared": round(shares[1], 3),
                    }
                )
                dropped.add(second)
                break
    return twins


def _spread(positions: np.ndarray) -> np.ndarray:
    """At most `MAX_QUERIES` of them, evenly."""
    if len(positions) <= MAX_QUERIES:
        return positions
    return positions[np.linspace(0, len(positions) - 1, MAX_QUERIES).round().astype(int)]

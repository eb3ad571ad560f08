"""Find objects that are in a data set twice: byte for byte, or as the same films encoded again.

No classifier can tell such classes apart, so keeping both lowers the accuracy at random. In Fruits-360,
"Cherry 4" holds the films of "Cherry 2" with other bytes in every frame.
"""

from collections import Counter, defaultdict

import numpy as np

from fruitstand.images.thumbnail import MAX_DIFFERENCE
from fruitstand.manifest import ManifestRow
from training.data.neighbours import nearest_neighbours

MAX_QUERIES = 64
"""Images of each class that are compared."""
MIN_SHARE = 1 / 3
"""Two classes show the same films if this share of each has its nearest neighbour in the other. For identical
classes it is one half."""


def without_twins(rows: list[ManifestRow]) -> tuple[list[ManifestRow], list[dict[str, object]]]:
    """Drop objects whose every image is also in another object's folder, byte for byte.

    Fruits-360 has such twins. They leak answers if one is in Training and the other in Test. Of two twins,
    the one that is only in Test stays, or else the alphabetically first.

    Returns:
        The remaining rows; and for each dropped object its name, class, twin and number of images.
    """
    files: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, str] = {}
    trained: set[str] = set()
    for row in rows:
        files[row.object].add(row.sha256)
        labels[row.object] = row.label
        if row.split != "test":
            trained.add(row.object)
    owners: dict[str, list[str]] = defaultdict(list)
    twins: list[dict[str, object]] = []
    for name in sorted(files, key=lambda name: (name in trained, name)):
        candidates = set.intersection(*(set(owners[digest]) for digest in files[name]))
        if candidates:
            twins.append(_twin(name, labels[name], min(candidates), len(files[name])))
        else:
            for digest in files[name]:
                owners[digest].append(name)
    dropped = {twin["object"] for twin in twins}
    return [row for row in rows if row.object not in dropped], twins


def _twin(name: str, label: str, same_as: str, num_images: int) -> dict[str, object]:
    return {"object": name, "label": label, "same_as": same_as, "num_images": num_images}


def find_same_films(thumbnails: np.ndarray, labels: list[str]) -> list[dict[str, object]]:
    """Find classes that show the same films as another class, by nearest neighbours of their thumbnails.

    Args:
        thumbnails: (N, D) uint8.
        labels: N class names.

    Returns:
        For each class to leave out: its name, the class with the same films, its number of images, and the
        share of these whose nearest neighbour is in the other class. Of two, the alphabetically first stays.
    """
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    index = np.array([numbers[label] for label in labels])
    queries = np.concatenate([_spread(np.flatnonzero(index == number)) for number in range(len(names))])
    nearest = nearest_neighbours(thumbnails[queries], thumbnails, excluded=queries)
    difference = np.abs(thumbnails[queries].astype(np.int16) - thumbnails[nearest]).mean(axis=1)
    pairs = np.stack([index[queries], index[nearest]], axis=1)
    counts = np.bincount(index[queries])
    met = Counter(map(tuple, pairs.tolist()))
    same = Counter(map(tuple, pairs[difference <= MAX_DIFFERENCE].tolist()))
    twins: list[dict[str, object]] = []
    dropped: set[int] = set()
    for second, name in enumerate(names):
        for first in range(second):
            shares = [same[a, b] / counts[a] for a, b in ((first, second), (second, first))]
            if first not in dropped and min(shares) >= MIN_SHARE:
                num_images = int((index == second).sum())
                shared = {"shared": round(float(met[second, first] / counts[second]), 3)}
                twins.append(_twin(name, name, names[first], num_images) | shared)
                dropped.add(second)
                break
    return twins


def _spread(positions: np.ndarray) -> np.ndarray:
    """At most `MAX_QUERIES` of the positions, evenly spaced."""
    if len(positions) <= MAX_QUERIES:
        return positions
    return positions[np.linspace(0, len(positions) - 1, MAX_QUERIES).round().astype(int)]

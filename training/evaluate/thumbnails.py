"""A prepared folder's images at 12x12 pixels: what the baseline compares, and how bright each fruit is.

They are made once and kept in the folder under `cache/`, 432 bytes an image.
"""

import os

import numpy as np

from fruitstand.artefacts import atomic_file, sweep_temporaries
from fruitstand.contract import Preprocessing
from fruitstand.images.reference_decode import decode_rows
from fruitstand.manifest import PreparedData
from fruitstand.progress import track
from training.data.same_films import THUMBNAIL_SIDE, thumbnail

WHITE = 235
"""A pixel whose darkest channel is at least this is background: Fruits-360 has it at 255, JPEG moves it."""


def thumbnails(data: PreparedData) -> np.ndarray:
    """All images of a prepared folder, small.

    Returns:
        (N, 432) uint8, in manifest order; see `training.data.same_films.thumbnail`.

    Raises:
        DataError: an image changed since it was prepared.
    """
    path = data.directory / "cache" / f"thumbnails-{data.manifest_sha256[:16]}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    small = np.empty((len(data.rows), 3 * THUMBNAIL_SIDE**2), np.uint8)
    # The contract's default size, whatever the model's: the baseline is the data's, not the run's.
    decoded = decode_rows(data, data.rows, Preprocessing())
    for index, image in enumerate(track(decoded, total=len(data.rows), description="thumbnails")):
        small[index] = thumbnail(image)
    if os.access(data.directory, os.W_OK):  # a data set may be mounted for reading only
        path.parent.mkdir(exist_ok=True)
        sweep_temporaries(path.parent)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, small)
    return small


def brightness(small: np.ndarray) -> np.ndarray:
    """Mean luma of what is not background.

    Args:
        small: (N, 432) uint8 thumbnails.

    Returns:
        (N,) float32, 0 to 255; of an image that is all background, that of the background.

    Source:
        Luma weights of ITU-R BT.601.
    """
    pixels = small.reshape(len(small), -1, 3)
    luma = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    fruit = pixels.min(axis=2) < WHITE
    fruit |= ~fruit.any(axis=1, keepdims=True)
    return (luma * fruit).sum(axis=1) / fruit.sum(axis=1)

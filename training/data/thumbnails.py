"""12x12 thumbnails to compare images with, cached for a prepared folder; and small pictures for reports."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from fruitstand.artefacts import atomic_file, sweep_temporaries
from fruitstand.contract import Preprocessing
from fruitstand.images.reference_decode import decode_rows
from fruitstand.images.thumbnail import THUMBNAIL_SIDE, thumbnail
from fruitstand.manifest import PreparedData
from fruitstand.progress import track

WHITE = 235
"""A pixel is background if its darkest channel is at least this; Fruits-360 has 255, less JPEG noise."""


def thumbnails(data: PreparedData) -> np.ndarray:
    """Thumbnails of all images of a prepared folder, cached there under `cache/` with 432 bytes per image.

    Returns:
        (N, 432) uint8, in manifest order.

    Raises:
        DataError: an image changed since it was prepared.
    """
    path = data.directory / "cache" / f"thumbnails-{data.manifest_sha256[:16]}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    small = np.empty((len(data.rows), 3 * THUMBNAIL_SIDE**2), np.uint8)
    # The contract's default size: the baseline depends on the data only, not on the model's input size.
    decoded = decode_rows(data, data.rows, Preprocessing())
    for index, image in enumerate(track(decoded, total=len(data.rows), description="thumbnails")):
        small[index] = thumbnail(image)
    if os.access(data.directory, os.W_OK):  # a data set may be mounted read-only
        path.parent.mkdir(exist_ok=True)
        sweep_temporaries(path.parent)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, small)
    return small


def brightness(small: np.ndarray) -> np.ndarray:
    """Mean luma of each image's foreground.

    Args:
        small: (N, 432) uint8 thumbnails.

    Returns:
        (N,) float32, 0 to 255; the mean over all pixels where an image has no foreground.

    Source:
        Luma weights of ITU-R BT.601.
    """
    pixels = small.reshape(len(small), -1, 3)
    luma = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    fruit = pixels.min(axis=2) < WHITE
    fruit |= ~fruit.any(axis=1, keepdims=True)
    return (luma * fruit).sum(axis=1) / fruit.sum(axis=1)


def picture(path: Path, side: int) -> Image.Image:
    """Read an image and shrink it to fit into a square of `side` pixels, RGB."""
    with Image.open(path) as opened:
        small = opened.convert("RGB")
    small.thumbnail((side, side))
    return small

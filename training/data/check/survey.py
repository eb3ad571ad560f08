"""Look at every image of a prepared folder once: what kind of file it is, and what it shows in a few numbers.

The numbers are a perceptual hash and a thumbnail, both from one reduction to 9 x 8 pixels. They are kept for
all images at once, 224 bytes each; the images themselves are not.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.header import SUPPORTED_FORMATS
from fruitstand.images.structure import inspect_image
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.progress import track

THUMBNAIL_SIZE = (9, 8)
"""Width and height in pixels: eight differences in each of eight lines."""
NUM_THREADS = 4


@dataclass(frozen=True, slots=True)
class Look:
    """What one readable image is."""

    format: str
    mode: str
    """Pillow's name."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """All images of a prepared folder, in manifest order."""

    looks: list[Look | None]
    """None where the file is missing or damaged."""
    problems: dict[int, str]
    """Row number to what is wrong with the file."""
    hashes: npt.NDArray[np.uint64]
    """(N,) dHash; 0 where there is no look."""
    thumbnails: npt.NDArray[np.uint8]
    """(N, 8, 9, 3) RGB; 0 where there is no look."""


def survey(data: PreparedData) -> Survey:
    """Read, check and reduce every image."""
    num_images, (width, height) = len(data.rows), THUMBNAIL_SIZE
    thumbnails = np.zeros((num_images, height, width, 3), np.uint8)
    looks: list[Look | None] = []
    problems: dict[int, str] = {}

    def look(index: int) -> Look | str:
        row = data.rows[index]
        try:
            seen, thumbnails[index] = _look(data.directory, row)
        except ImageRejected as exc:
            return str(exc)
        except OSError as exc:
            return f"cannot be read: {exc.strerror}"
        return seen

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(look, range(num_images))
        for index, result in enumerate(track(results, total=num_images, description="look")):
            if isinstance(result, str):
                problems[index] = result
                looks.append(None)
            else:
                looks.append(result)
    return Survey(looks, problems, difference_hashes(thumbnails), thumbnails)


def _look(directory: Path, row: ManifestRow) -> tuple[Look, npt.NDArray[np.uint8]]:
    encoded = (directory / row.path).read_bytes()
    if hashlib.sha256(encoded).hexdigest() != row.sha256:
        raise ImageRejected("changed since it was prepared")
    inspected = inspect_image(encoded, Preprocessing())
    formats = [name.upper() for name in SUPPORTED_FORMATS]
    try:
        with Image.open(io.BytesIO(inspected.content), formats=formats) as opened:
            opened.load()
            small = opened.convert("RGB").resize(THUMBNAIL_SIZE, Image.Resampling.BOX)
            seen = Look(inspected.header.format, opened.mode, *opened.size, len(encoded))
    except Exception as exc:  # Pillow raises a dozen kinds for damaged files; each means the same here
        raise ImageRejected("damaged or truncated: the image cannot be decoded to its end") from exc
    return seen, np.asarray(small)


def difference_hashes(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The dHash of each thumbnail: one bit for each pixel that is darker than its right neighbour.

    Args:
        thumbnails: (N, 8, 9, 3) uint8, RGB.

    Returns:
        (N,) uint64, the first pixel in the highest bit.

    Source:
        N. Krawetz, "Kind of Like That", 2013 (dHash); luma weights of ITU-R BT.601.
    """
    grey = thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    bits = grey[:, :, 1:] > grey[:, :, :-1]
    packed = np.packbits(bits.reshape(len(bits), -1), axis=1)
    return packed.view(">u8").astype(np.uint64).reshape(-1)

"""Read every image of a prepared folder once: file format, size, a perceptual hash and a thumbnail.

Hash and thumbnail come from the image reduced to 9 x 8 pixels. They take 224 bytes per image and are kept for
all images; the pixels are not.
"""

import hashlib
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

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
"""Width and height in pixels: eight differences between neighbours in each of eight rows."""
NUM_THREADS = 4
USUAL_SHARE = 0.9
"""If this share of the images has one size or one mode, the others are reported as odd."""
MAX_LISTED = 200
"""Findings listed of each kind; the counts are complete."""


@dataclass(frozen=True, slots=True)
class Look:
    """Format and size of one readable image."""

    format: str
    mode: str
    """Pillow's name of the pixel format, such as RGB."""
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
    """What is wrong with a file, by row number."""
    hashes: npt.NDArray[np.uint64]
    """(N,) dHash; 0 for unreadable files."""
    thumbnails: npt.NDArray[np.uint8]
    """(N, 8, 9, 3) RGB; 0 for unreadable files."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that is damaged or odd."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FileReport:
    """The files of a prepared folder; lists end at `MAX_LISTED`, counts are complete."""

    num_damaged: int
    damaged: list[Finding]
    num_odd: int
    odd: list[Finding]
    sizes: dict[str, int]
    """Number of images of each size, the most common first."""
    modes: dict[str, int]
    formats: dict[str, int]
    bytes: dict[str, float]
    """Size of the smallest, median and largest file."""


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
    except Exception as exc:  # Pillow raises many types of errors for damaged files
        raise ImageRejected("damaged or truncated: the image cannot be decoded to its end") from exc
    return seen, np.asarray(small)


def difference_hashes(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The dHash of each thumbnail: a bit is set where a pixel is darker than its right neighbour.

    Args:
        thumbnails: (N, 8, 9, 3) uint8, RGB.

    Returns:
        (N,) uint64; the first pixel is the highest bit.

    Source:
        N. Krawetz, "Kind of Like That", 2013 (dHash); luma weights of ITU-R BT.601.
    """
    grey = thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    bits = grey[:, :, 1:] > grey[:, :, :-1]
    packed = np.packbits(bits.reshape(len(bits), -1), axis=1)
    return packed.view(">u8").astype(np.uint64).reshape(-1)


def file_report(data: PreparedData, seen: Survey) -> FileReport:
    """List damaged and odd files, and count sizes, modes and formats."""
    looks = [look for look in seen.looks if look is not None]
    num_bytes = sorted(look.num_bytes for look in looks)
    damaged = [Finding(data.rows[index].path, reason) for index, reason in sorted(seen.problems.items())]
    odd = _unusual(data, seen) + [Finding(stray, "not in the manifest") for stray in _strays(data)]
    return FileReport(
        num_damaged=len(damaged),
        damaged=damaged[:MAX_LISTED],
        num_odd=len(odd),
        odd=odd[:MAX_LISTED],
        sizes=dict(Counter(f"{look.width} x {look.height}" for look in looks).most_common(MAX_LISTED)),
        modes=dict(Counter(look.mode for look in looks).most_common()),
        formats=dict(Counter(look.format for look in looks).most_common()),
        bytes={
            "smallest": num_bytes[0] if num_bytes else 0,
            "median": median(num_bytes) if num_bytes else 0,
            "largest": num_bytes[-1] if num_bytes else 0,
        },
    )


def _unusual(data: PreparedData, seen: Survey) -> list[Finding]:
    """Find images whose size or mode differs from that of nearly all others."""
    traits = [
        (row.path, f"{look.width} x {look.height} pixels", f"mode {look.mode}")
        for row, look in zip(data.rows, seen.looks, strict=True)
        if look is not None
    ]
    odd: dict[str, str] = {}
    for trait in (1, 2):
        counts = Counter(one[trait] for one in traits)
        usual, count = counts.most_common(1)[0] if counts else ("", 0)
        if count >= USUAL_SHARE * len(traits):
            for one in traits:
                if one[trait] != usual:
                    odd.setdefault(one[0], f"{one[trait]}, most are {usual.removeprefix('mode ')}")
    return [Finding(file, reason) for file, reason in sorted(odd.items())]


def _strays(data: PreparedData) -> list[str]:
    listed = {row.path for row in data.rows}
    found = (path for path in (data.directory / "images").rglob("*") if path.is_file())
    return sorted({str(path.relative_to(data.directory)) for path in found} - listed)

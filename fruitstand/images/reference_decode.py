"""The yardstick: decode and resize one image with Pillow exactly as the served DALI pipeline does.

Training reads its images with it, export holds the DALI pipeline against it. Pillow and numpy are
imported inside, so that the contract itself stays free of them.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fruitstand.contract import Preprocessing
from fruitstand.errors import DataError, ImageRejected
from fruitstand.images import png
from fruitstand.images.header import SUPPORTED_FORMATS
from fruitstand.images.structure import inspect_image
from fruitstand.manifest import ManifestRow, PreparedData

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

NUM_THREADS = 4
"""Pillow decodes outside Python's lock; more threads than cores hide the reading of files."""


def decode_reference(encoded: bytes, preprocessing: Preprocessing) -> "npt.NDArray[np.uint8]":
    """Decode one image and resize it the way the DALI pipeline does.

    Args:
        encoded: a JPEG, PNG, WebP or BMP file, at most `preprocessing.max_encoded_bytes`.
        preprocessing: the contract; every number used here comes from it.

    Returns:
        (H, W, 3) uint8, RGB, 0 to 255. EXIF orientation is applied, alpha is dropped, 16 bits become 8.

    Raises:
        ImageRejected: not an image, damaged, too many pixels or bytes, or an unsupported format.

    Source:
        timm `resolve_model_data_config`: same keys, same order of operations.
    """
    import numpy as np
    from PIL import Image

    inspected = inspect_image(encoded, preprocessing)
    try:
        if inspected.header.format == "PNG" and png.has_broken_rows(memoryview(inspected.content)):
            raise OSError("rows are missing or broken")  # Pillow would fill them with black
        formats = [name.upper() for name in SUPPORTED_FORMATS]
        with Image.open(io.BytesIO(inspected.content), formats=formats) as opened:
            opened.load()
            image = _rgb(_upright(opened))
    except Exception as exc:  # Pillow raises a dozen kinds for damaged files; each means the same here
        raise ImageRejected("damaged or truncated: the image cannot be decoded to its end") from exc
    size = preprocessing.resized_size(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling[preprocessing.interpolation.upper()])
    height, width = preprocessing.input_size
    left, top = (size[0] - width + 1) // 2, (size[1] - height + 1) // 2
    if size != (width, height):
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image)


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the picture; DALI ignores it too
        return image


def _rgb(image: "Image.Image") -> "Image.Image":
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns about the direct way
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_rows(
    data: PreparedData, rows: Sequence[ManifestRow], preprocessing: Preprocessing
) -> "Iterator[npt.NDArray[np.uint8]]":
    """Decode images of a prepared folder, in order, on several threads.

    Yields:
        (H, W, 3) uint8 each.

    Raises:
        DataError: an image is missing, was changed since it was prepared, or cannot be decoded.
    """

    def decode(row: ManifestRow) -> "npt.NDArray[np.uint8]":
        path = data.directory / row.path
        try:
            encoded = path.read_bytes()
            if hashlib.sha256(encoded).hexdigest() != row.sha256:
                raise DataError(f"{path}: changed since it was prepared; prepare the data again")
            return decode_reference(encoded, preprocessing)
        except (ImageRejected, OSError) as exc:
            raise DataError(f"{path}: {exc}; prepare the data again") from exc

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        yield from pool.map(decode, rows)

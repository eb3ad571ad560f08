"""The reference decode: decode and resize images with Pillow as the served DALI pipeline does.

Training reads its images with it, and the export compares the DALI pipeline with it. It can also decode large
JPEGs at a reduced size, which DALI cannot do on a CPU. Pillow and numpy are imported inside the functions.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fruitstand.contract import Preprocessing
from fruitstand.errors import DataError, ImageRejected
from fruitstand.images.formats import png
from fruitstand.images.header import SUPPORTED_FORMATS, ImageHeader
from fruitstand.images.structure import Inspected, inspect_image
from fruitstand.manifest import ManifestRow, PreparedData

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

EXIF_ORIENTATION = 0x0112
FIRST_ORIENTATION_ON_ITS_SIDE = 5
"""Orientations from this to 8 swap width and height."""
NUM_THREADS = 4
"""Pillow decodes without holding the GIL; more threads than cores hide the time to read files."""


def decode_reference(encoded: bytes, preprocessing: Preprocessing) -> "npt.NDArray[np.uint8]":
    """Decode one image and resize it the way the DALI pipeline does.

    Args:
        encoded: a JPEG, PNG, WebP or BMP file, at most `preprocessing.max_encoded_bytes`.
        preprocessing: the contract; all sizes and limits come from it.

    Returns:
        (H, W, 3) uint8, RGB, 0 to 255. EXIF orientation is applied, alpha is dropped, 16 bits become 8.

    Raises:
        ImageRejected: not an image, damaged, too many pixels or bytes, or an unsupported format.

    Source:
        timm `create_transform` for evaluation: same keys, same order of operations. Two roundings follow
        DALI: the longer side after the resize, and the odd pixel of the center crop.
    """
    return decode_inspected(inspect_image(encoded, preprocessing), preprocessing)


def decode_inspected(
    inspected: Inspected, preprocessing: Preprocessing, *, reduced: bool = False
) -> "npt.NDArray[np.uint8]":
    """Decode an image that `inspect_image` has checked.

    `reduced` decodes a JPEG at `preprocessing.jpeg_scale` instead of its full size.

    Returns:
        The same as `decode_reference`.

    Raises:
        ImageRejected: the image cannot be decoded to its end.
    """
    import numpy as np

    image = resized_picture(inspected, preprocessing, reduced=reduced)
    height, width = preprocessing.input_size
    left, top = (image.width - width + 1) // 2, (image.height - height + 1) // 2
    if image.size != (width, height):
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image)


def resized_picture(
    inspected: Inspected, preprocessing: Preprocessing, *, reduced: bool = False
) -> "Image.Image":
    """Decode and resize without the crop: RGB, upright, `preprocessing.resized_size`.

    Raises:
        ImageRejected: the image cannot be decoded to its end.
    """
    from PIL import Image

    header, scale = inspected.header, 1
    if reduced and is_reduced(header, preprocessing):
        scale = preprocessing.jpeg_scale(header.width, header.height)
    try:
        if header.format == "PNG" and png.has_broken_rows(memoryview(inspected.content)):
            raise OSError("rows are missing or broken")  # Pillow would fill them with black
        formats = [name.upper() for name in SUPPORTED_FORMATS]
        with Image.open(io.BytesIO(inspected.content), formats=formats) as opened:
            if scale > 1:
                opened.draft(None, (header.width // scale, header.height // scale))
            opened.load()
            image = _rgb(opened if scale > 1 else _upright(opened))
    except Exception as exc:  # Pillow raises many types of errors for damaged files
        raise ImageRejected("damaged or truncated: the image cannot be decoded to its end") from exc
    if scale > 1:
        return _resize_reduced(image, header, scale, preprocessing)
    size = preprocessing.resized_size(*image.size)
    return image if size == image.size else _resize(image, size, preprocessing)


def is_reduced(header: ImageHeader, preprocessing: Preprocessing) -> bool:
    """Whether `decode_inspected` with `reduced` decodes an image with this header at a reduced size."""
    return header.format == "JPEG" and preprocessing.jpeg_scale(header.width, header.height) > 1


def _resize_reduced(
    image: "Image.Image", header: ImageHeader, scale: int, preprocessing: Preprocessing
) -> "Image.Image":
    """Resize a picture that was decoded at 1/scale, then turn it."""
    is_on_its_side = image.getexif().get(EXIF_ORIENTATION, 1) >= FIRST_ORIENTATION_ON_ITS_SIDE
    turn = -1 if is_on_its_side else 1
    size = preprocessing.resized_size(*(header.width, header.height)[::turn])
    # The last pixel of a row or column stands for a whole block, even if the picture ends inside the block.
    picture = (0, 0, header.width / scale, header.height / scale)
    return _upright(_resize(image, size[::turn], preprocessing, picture))


def _resize(
    image: "Image.Image",
    size: tuple[int, ...],
    preprocessing: Preprocessing,
    box: tuple[float, float, float, float] | None = None,
) -> "Image.Image":
    import numpy as np
    from PIL import Image

    target = size[0], size[1]
    if preprocessing.interpolation == "bilinear":
        return image.resize(target, Image.Resampling.BILINEAR, box)
    # Bicubic overshoots at edges. Pillow clips 8-bit pixels between its two passes, DALI does not: use
    # floats.
    bands = [
        np.asarray(one.convert("F").resize(target, Image.Resampling.BICUBIC, box)) for one in image.split()
    ]
    resized = Image.fromarray(np.stack(bands, axis=-1).round().clip(0, 255).astype(np.uint8))
    resized.info = image.info  # keeps the orientation
    return resized


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # ignore a broken EXIF block, as DALI does
        return image


def _rgb(image: "Image.Image") -> "Image.Image":
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns about the direct conversion
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

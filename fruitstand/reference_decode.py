"""The yardstick: decode and resize one image with Pillow exactly as the served DALI pipeline does.

Training reads its images with it, export holds the DALI pipeline against it. Pillow and numpy are
imported inside, so that the contract itself stays free of them.
"""

import io
from typing import TYPE_CHECKING

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.image_header import SUPPORTED_FORMATS, read_header

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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
    from PIL import Image, ImageOps

    read_header(encoded, preprocessing)
    try:
        with Image.open(io.BytesIO(encoded), formats=[name.upper() for name in SUPPORTED_FORMATS]) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except Exception as exc:  # Pillow raises a dozen kinds for damaged files; each means the same here
        raise ImageRejected("damaged or truncated: the image cannot be decoded to its end") from exc
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    size = preprocessing.resized_size(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling[preprocessing.interpolation.upper()])
    height, width = preprocessing.input_size
    left, top = (size[0] - width + 1) // 2, (size[1] - height + 1) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))

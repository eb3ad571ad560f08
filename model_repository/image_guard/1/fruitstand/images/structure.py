"""Is an encoded image whole, and which of its bytes does a decoder need? No pixel is decoded for the answer.

Decoders disagree about damaged files: what one refuses another fills with grey, or with whatever its memory
held. And DALI 2.4 ends its whole process when a batch holds a file whose header its parser cannot read. So
training, export and serving ask here first, and every decoder gets the picture alone: what stands around it
(comments, colour profiles, other frames, broken metadata) can neither hurt nor make decoders disagree.
"""

import struct
from dataclasses import dataclass

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images import bmp, jpeg, png, webp
from fruitstand.images.header import ImageHeader, read_header

_PICTURE_ONLY = {
    "JPEG": jpeg.picture_only,
    "PNG": png.picture_only,
    "WebP": webp.picture_only,
    "BMP": bmp.picture_only,
}


@dataclass(frozen=True, slots=True)
class Inspected:
    """An image that is whole."""

    header: ImageHeader
    content: bytes | memoryview
    """What a decoder gets: the file up to the picture's end, or a copy without what is no part of it."""


def inspect_image(encoded: bytes | memoryview, preprocessing: Preprocessing) -> Inspected:
    """Refuse what the contract does not allow and what is not whole, before any decoder sees it.

    Args:
        encoded: the whole file; what follows the image's own end does no harm.
        preprocessing: the contract, for `max_encoded_bytes` and `max_pixels`.

    Raises:
        ImageRejected: as `read_header`, and a file that ends too early or contradicts itself.

    Source:
        ITU-T T.81 annex B, PNG specification sections 5 and 11, WebP container specification; at least as
        strict as NVIDIA/nvImageCodec `src/parsers/*.cpp` (commit 36b4ee8).
    """
    header = read_header(encoded, preprocessing)
    try:
        content = _PICTURE_ONLY[header.format](memoryview(encoded))
    except (struct.error, IndexError) as exc:
        raise ImageRejected("truncated: the file ends before the image does") from exc
    return Inspected(header, content)

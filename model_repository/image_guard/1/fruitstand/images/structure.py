"""Check that an encoded image is complete, and reduce it to the bytes that a decoder needs, without decoding.

Decoders disagree about damaged files: some refuse them, others fill the missing part with grey or with old
memory. DALI 2.4 even aborts its process if its parser cannot read the header of a file in a batch. So
training, export and serving call this first, and every decoder gets only the picture. Comments, colour
profiles, other frames and broken metadata are removed, so they cannot cause harm or make decoders disagree.
"""

import struct
from dataclasses import dataclass

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.formats import bmp, jpeg, png, webp
from fruitstand.images.header import ImageHeader, read_header

_PICTURE_ONLY = {
    "JPEG": jpeg.picture_only,
    "PNG": png.picture_only,
    "WebP": webp.picture_only,
    "BMP": bmp.picture_only,
}


@dataclass(frozen=True, slots=True)
class Inspected:
    """A complete image."""

    header: ImageHeader
    content: bytes | memoryview
    """The bytes for a decoder: the file up to the picture's end, or a copy with only the picture."""


def inspect_image(encoded: bytes | memoryview, preprocessing: Preprocessing) -> Inspected:
    """Check an image against the contract and for completeness.

    Args:
        encoded: the whole file; bytes after the end of the image are ignored.
        preprocessing: the contract, for `max_encoded_bytes` and `max_pixels`.

    Raises:
        ImageRejected: as `read_header`; and for a truncated or inconsistent file.

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

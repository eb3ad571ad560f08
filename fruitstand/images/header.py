"""Read format and size of an encoded image from its first bytes, to check the limits before decoding."""

import struct
from dataclasses import dataclass

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.formats import bmp, jpeg, png, webp

SUPPORTED_FORMATS = ("JPEG", "PNG", "WebP", "BMP")

_READ_SIZE = {"JPEG": jpeg.read_size, "PNG": png.read_size, "WebP": webp.read_size, "BMP": bmp.read_size}
_KNOWN_UNSUPPORTED = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\x01\0": "ICO",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\x89HDF": "HDF5",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Format and size from the header of a file."""

    format: str
    """One of `SUPPORTED_FORMATS`."""
    width: int
    """Pixels, before any EXIF rotation."""
    height: int
    """Pixels, before any EXIF rotation."""


def read_header(encoded: bytes | memoryview, preprocessing: Preprocessing) -> ImageHeader:
    """Read the header of an encoded image, and check it against the contract.

    Args:
        encoded: the whole file; trailing zero bytes are allowed.
        preprocessing: the contract, for `max_encoded_bytes` and `max_pixels`.

    Raises:
        ImageRejected: empty, too large, not an image, an unsupported format, truncated in the header, or more
            pixels than allowed.

    Source:
        ITU-T T.81 annex B (JPEG markers), PNG specification section 11.2.2, WebP container
        specification (VP8, VP8L, VP8X), BITMAPINFOHEADER.
    """
    size_bytes = len(encoded)
    if size_bytes == 0:
        raise ImageRejected("the image is empty (0 bytes)")
    if size_bytes > preprocessing.max_encoded_bytes:
        raise ImageRejected(
            f"too many bytes: {size_bytes}, at most {preprocessing.max_encoded_bytes} are allowed"
        )
    view = memoryview(encoded)
    image_format = _format(bytes(view[:16]))
    try:
        width, height = _READ_SIZE[image_format](view)
    except (struct.error, IndexError) as exc:
        raise ImageRejected("truncated: the file ends inside its header") from exc
    if width <= 0 or height <= 0:
        raise ImageRejected(f"not an image: its header says {width} x {height} pixels")
    # The limit also holds after the resize: 1 x 65,535 pixels are few until the short side is scaled up.
    resized = preprocessing.resized_size(width, height)
    if max(width * height, resized[0] * resized[1]) > preprocessing.max_pixels:
        raise ImageRejected(
            f"too many pixels: {width} x {height}, at most {preprocessing.max_pixels}"
            " are allowed, before and after the resize"
        )
    return ImageHeader(image_format, width, height)


def _format(start: bytes) -> str:
    if start[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if start[:8] == png.SIGNATURE:
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[:2] == b"BM":
        return "BMP"
    allowed = ", ".join(SUPPORTED_FORMATS)
    for magic, name in _KNOWN_UNSUPPORTED.items():
        if start.startswith(magic):
            raise ImageRejected(f"unsupported format: {name}; send one of {allowed}")
    if start[4:8] == b"ftyp":
        raise ImageRejected(f"unsupported format: HEIC, AVIF or a video; send one of {allowed}")
    raise ImageRejected(f"not an image: none of {allowed}")

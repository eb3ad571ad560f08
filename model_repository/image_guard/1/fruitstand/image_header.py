"""Format and size of an encoded image from its first bytes: the limits are checked before any decode."""

import struct
from dataclasses import dataclass

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected

SUPPORTED_FORMATS = ("JPEG", "PNG", "WebP", "BMP")

_KNOWN_UNSUPPORTED = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\x01\0": "ICO",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\x89HDF": "HDF5",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
MAX_JPEG_MARKERS = 1000
"""Real files have a dozen, and a hostile one may not cost us time."""
OS2_HEADER_BYTES = 12
_NOT_A_JPEG_FRAME = {0xC4, 0xC8, 0xCC}  # DHT, JPG and DAC share the frame markers' range
_DECODABLE_JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # sequential and progressive, Huffman and arithmetic


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes of a file announce."""

    format: str
    """One of `SUPPORTED_FORMATS`."""
    width: int
    """Pixels, before any EXIF rotation."""
    height: int
    """Pixels, before any EXIF rotation."""


def read_header(encoded: bytes | memoryview, preprocessing: Preprocessing) -> ImageHeader:
    """Find out what an encoded image is, and refuse what the contract does not allow.

    Args:
        encoded: the whole file; trailing zero bytes do no harm.
        preprocessing: the contract, for `max_encoded_bytes` and `max_pixels`.

    Raises:
        ImageRejected: empty, too large, not an image, an unsupported format, cut off inside its header,
            or more pixels than allowed.

    Source:
        ITU-T T.81 annex B (JPEG markers), PNG specification section 11.2.2, WebP container
        specification (VP8, VP8L, VP8X), BITMAPINFOHEADER.
    """
    size = len(encoded)
    if size == 0:
        raise ImageRejected("the image is empty (0 bytes)")
    if size > preprocessing.max_encoded_bytes:
        raise ImageRejected(f"too many bytes: {size}, at most {preprocessing.max_encoded_bytes} are allowed")
    view = memoryview(encoded)
    start = bytes(view[:32])
    try:
        if start[:3] == b"\xff\xd8\xff":
            header = _jpeg(view)
        elif start[:8] == b"\x89PNG\r\n\x1a\n":
            header = ImageHeader("PNG", *struct.unpack(">II", start[16:24]))
        elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            header = _webp(start)
        elif start[:2] == b"BM":
            header = _bmp(start)
        else:
            raise ImageRejected(_unknown(start))
    except (struct.error, IndexError) as exc:
        raise ImageRejected("truncated: the file ends inside its header") from exc
    if header.width <= 0 or header.height <= 0:
        raise ImageRejected(f"not an image: its header says {header.width} x {header.height} pixels")
    # A picture of one pixel by 65,535 is small until its short side is scaled up.
    for width, height in (
        (header.width, header.height),
        preprocessing.resized_size(header.width, header.height),
    ):
        if width * height > preprocessing.max_pixels:
            raise ImageRejected(
                f"too many pixels: {header.width} x {header.height}, at most {preprocessing.max_pixels}"
                " are allowed, before and after the resize"
            )
    return header


def _jpeg(view: memoryview) -> ImageHeader:
    position = 2
    for _ in range(MAX_JPEG_MARKERS):
        if view[position] != 0xFF:
            raise ImageRejected("not an image: broken JPEG markers")
        marker = view[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NOT_A_JPEG_FRAME:
            return _jpeg_frame(marker, *struct.unpack_from(">BHHB", view, position + 4))
        elif marker in (0xD9, 0xDA):
            raise ImageRejected("not an image: a JPEG without a frame header")
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD8:  # reserved, or without a length: none belongs here
            raise ImageRejected("not an image: broken JPEG markers")
        else:
            position += 2 + struct.unpack_from(">H", view, position + 2)[0]
    raise ImageRejected(f"not an image: more than {MAX_JPEG_MARKERS} JPEG markers before the frame header")


def _jpeg_frame(marker: int, depth: int, height: int, width: int, num_channels: int) -> ImageHeader:
    if marker not in _DECODABLE_JPEG_FRAMES:
        raise ImageRejected("unsupported format: lossless or hierarchical JPEG; send a baseline one")
    if depth != 8:
        raise ImageRejected(f"unsupported format: JPEG with {depth} bits a channel; send one with 8")
    if num_channels not in (1, 3, 4):
        raise ImageRejected(f"unsupported format: JPEG with {num_channels} channels; send 1, 3 or 4")
    return ImageHeader("JPEG", width, height)


def _webp(start: bytes) -> ImageHeader:
    kind = start[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(start[24:27], "little")
        height = 1 + int.from_bytes(start[27:30], "little")
    elif kind == b"VP8L":
        bits = struct.unpack("<I", start[21:25])[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", start[26:30]))
    else:
        raise ImageRejected("not an image: an unknown WebP chunk")
    return ImageHeader("WebP", width, height)


def _bmp(start: bytes) -> ImageHeader:
    if struct.unpack("<I", start[14:18])[0] == OS2_HEADER_BYTES:
        return ImageHeader("BMP", *struct.unpack("<HH", start[18:22]))
    width, height = struct.unpack("<ii", start[18:26])
    return ImageHeader("BMP", width, abs(height))


def _unknown(start: bytes) -> str:
    allowed = ", ".join(SUPPORTED_FORMATS)
    for magic, name in _KNOWN_UNSUPPORTED.items():
        if start.startswith(magic):
            return f"unsupported format: {name}; send one of {allowed}"
    if start[4:8] == b"ftyp":
        return f"unsupported format: HEIC, AVIF or a video; send one of {allowed}"
    return f"not an image: none of {allowed}"

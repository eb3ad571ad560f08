"""Is an encoded image whole? Its markers, chunks and lengths are walked without decoding a pixel.

Decoders disagree about damaged files: what one refuses another fills with grey, or with whatever its memory
held. And DALI 2.4 ends its whole process when a batch holds a file whose header its parser cannot read. So
training, export and serving ask here first, and the decoders see only files that are complete.
"""

import re
import struct
import zlib
from collections.abc import Iterator

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.image_header import MAX_JPEG_MARKERS, ImageHeader, read_header

MAX_JPEG_SCANS = 32
"""A progressive file has about ten; each one more costs a pass over all pixels."""
MAX_PNG_CHUNKS = 10_000
"""A file of `max_encoded_bytes` has a thousand of libpng's usual size."""
MAX_WEBP_CHUNKS = 1000

_TRUNCATED = "truncated: the file ends before the image does"
_MARKER_HERE = re.compile(rb"\xff+[\xc0-\xcf\xd9-\xfe]")
_NEXT_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # neither stuffing, nor restart, nor fill bytes
_DHT, _SOI, _EOI, _SOS = 0xC4, 0xD8, 0xD9, 0xDA
_PROGRESSIVE_FRAMES = {0xC2, 0xCA}
_PNG_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_PALETTE = 3
_WEBP_HAS_EXIF = 8
ADAM7_PASSES = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
)  # fmt: skip
"""Of an interlaced PNG: first row, first column, row step, column step."""


def inspect_image(encoded: bytes | memoryview, preprocessing: Preprocessing) -> ImageHeader:
    """Refuse what the contract does not allow and what is not whole, before any decoder sees it.

    Args:
        encoded: the whole file; what follows the image's own end does no harm.
        preprocessing: the contract, for `max_encoded_bytes` and `max_pixels`.

    Raises:
        ImageRejected: as `read_header`, and a file that ends too early or contradicts itself.

    Source:
        ITU-T T.81 annex B, PNG specification sections 5 and 11, WebP container specification; at least as
        strict as NVIDIA/nvImageCodec `src/parsers/*.cpp` (commit 1c36776).
    """
    header = read_header(encoded, preprocessing)
    view = memoryview(encoded)
    try:
        _CHECKS[header.format](view)
    except (struct.error, IndexError) as exc:
        raise ImageRejected(_TRUNCATED) from exc
    return header


def _jpeg(view: memoryview) -> None:
    position, is_progressive, num_scans = 2, False, 0
    for _ in range(MAX_JPEG_MARKERS):
        found = (_NEXT_MARKER.search if num_scans else _MARKER_HERE.match)(view, position)
        if found is None:
            cut = num_scans or position >= len(view)
            raise ImageRejected(_TRUNCATED if cut else "damaged: broken JPEG markers")
        position = found.end()
        marker = view[position - 1]
        if marker == _EOI:
            if num_scans == 0:
                raise ImageRejected("damaged: a JPEG without picture data")
            return
        length = view[position] << 8 | view[position + 1]
        if marker == _SOI or length < 2:
            raise ImageRejected("damaged: broken JPEG markers")
        if position + length > len(view):
            raise ImageRejected(_TRUNCATED)
        if marker == _DHT:
            _huffman_tables(view[position + 2 : position + length])
        is_progressive |= marker in _PROGRESSIVE_FRAMES
        num_scans += marker == _SOS
        if num_scans > MAX_JPEG_SCANS:
            raise ImageRejected(f"damaged: a JPEG of more than {MAX_JPEG_SCANS} scans")
        position += length
        if num_scans and not is_progressive:
            # Nearly always one scan and the end: found from behind in a hundredth of a walk's time.
            if bytes(view[position:]).rfind(b"\xff\xd9") < 0:
                raise ImageRejected(_TRUNCATED)
            return
    raise ImageRejected(f"damaged: more than {MAX_JPEG_MARKERS} JPEG markers")


def _huffman_tables(segment: memoryview) -> None:
    """One table's 16 counts say how many symbols follow it."""
    position = 0
    while position < len(segment):
        num_symbols = sum(segment[position + 1 : position + 17])
        position += 17 + num_symbols
        if num_symbols > 256 or position > len(segment):
            raise ImageRejected("damaged: broken JPEG tables")


def png_chunks(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of a PNG's chunks, IEND included, each held against its checksum.

    Raises:
        ImageRejected: a chunk is cut off or altered.
    """
    position = 8
    for _ in range(MAX_PNG_CHUNKS):
        length, kind = struct.unpack_from(">I4s", view, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", view, end)
        if zlib.crc32(view[position + 4 : end]) != checksum:
            raise ImageRejected("damaged: a PNG chunk does not match its checksum")
        yield kind, view[position + 8 : end]
        if kind == b"IEND":
            return
        position = end + 4
    raise ImageRejected(f"damaged: more than {MAX_PNG_CHUNKS} PNG chunks")


def _png(view: memoryview) -> None:
    seen = set()
    colour = None
    for kind, content in png_chunks(view):
        if colour is None:
            if kind != b"IHDR" or len(content) != 13:
                raise ImageRejected("damaged: a PNG that does not begin with its header")
            depth, colour, compression, filtering, interlace = content[8:13]
            if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
                raise ImageRejected("damaged: a PNG header with values that do not exist")
        elif kind == b"IHDR" or (kind[:1].isupper() and kind not in _PNG_CRITICAL):
            raise ImageRejected(f"damaged: a PNG with an unexpected chunk {kind.decode('ascii', 'replace')}")
        seen.add(kind)
    if b"IDAT" not in seen or (colour == _PNG_PALETTE and b"PLTE" not in seen):
        raise ImageRejected("damaged: a PNG without picture data or palette")


def _webp(view: memoryview) -> None:
    (size,) = struct.unpack_from("<I", view, 4)
    if size + 8 > len(view):
        raise ImageRejected(_TRUNCATED)
    kind = bytes(view[12:16])
    if (kind == b"VP8 " and bytes(view[23:26]) != b"\x9d\x01\x2a") or (kind == b"VP8L" and view[20] != 0x2F):
        raise ImageRejected("damaged: a WebP without its start code")
    if kind == b"VP8X" and view[20] & _WEBP_HAS_EXIF:
        _find_exif(view[: size + 8])


def _find_exif(view: memoryview) -> None:
    """DALI's parser forgets the byte that follows a chunk of odd size."""
    position, num_chunks = 12, 0
    while position + 8 <= len(view) and num_chunks < MAX_WEBP_CHUNKS:
        kind, length = struct.unpack_from("<4sI", view, position)
        position += 8 + length
        num_chunks += 1
        if kind == b"EXIF" and position <= len(view):
            return
    raise ImageRejected(
        "unsupported format: a WebP whose EXIF is missing or follows a chunk of odd size; save it without"
    )


def _bmp(view: memoryview) -> None:
    (offset, header_size, width, height, _, depth, compression) = struct.unpack_from("<IIiiHHI", view, 10)
    (num_colours,) = struct.unpack_from("<I", view, 46)
    if header_size < 40 or depth not in (1, 4, 8, 24, 32) or compression:
        raise ImageRejected(
            "unsupported format: a BMP with compression, 16 bits a pixel or an OS2 header; send it as PNG"
        )
    row_size_bytes = (width * depth + 31) // 32 * 4
    palette_bytes = 4 * (num_colours or 1 << depth) if depth <= 8 else 0
    if palette_bytes > 1024 or 14 + header_size + palette_bytes > offset:
        raise ImageRejected("damaged: a BMP whose palette does not fit")
    if offset + row_size_bytes * abs(height) > len(view):
        raise ImageRejected(_TRUNCATED)


_CHECKS = {"JPEG": _jpeg, "PNG": _png, "WebP": _webp, "BMP": _bmp}


def png_picture_is_short(view: memoryview) -> bool:
    """Whether a PNG that passed `inspect_image` holds fewer rows than it announces; costs a decompression."""
    header = memoryview(b"")
    stream, num_bytes = zlib.decompressobj(), 0
    for kind, content in png_chunks(view):
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            num_bytes += len(stream.decompress(content))
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    expected = 0
    for top, left, down, right in ADAM7_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0:
            expected += max(0, rows) * (1 + (columns * bits + 7) // 8)
    return num_bytes < expected

"""Check the chunks of a PNG, and remove those that do not belong to the picture."""

import struct
import zlib
from collections.abc import Iterator

from fruitstand.errors import ImageRejected
from fruitstand.images.orientation import exif_block, turn

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 10_000
"""A file of `max_encoded_bytes` has about a thousand chunks of libpng's default size."""
MAX_PROFILE_BYTES = 2**20
"""Largest EXIF that is read from a compressed text chunk."""
ADAM7_PASSES = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
)  # fmt: skip
"""First row, first column, row step and column step of each pass of an interlaced PNG."""

_PICTURE = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_NUM_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
_RAW_EXIF, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"


def read_size(view: memoryview) -> tuple[int, int]:
    """Read width and height in pixels, before the EXIF orientation is applied.

    Raises:
        struct.error: the file ends inside its header.
    """
    width, height = struct.unpack_from(">II", view, 16)
    return width, height


def chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk up to IEND; checksums of the picture's chunks are checked.

    Raises:
        ImageRejected: a checksum does not match, or the file holds something else than chunks.
        struct.error: the file ends inside a chunk.
    """
    position = 8
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", view, position)
        end = position + 12 + length
        if kind in _PICTURE:
            if not _is_unaltered(view, position, end):
                raise ImageRejected("damaged: a PNG chunk does not match its checksum")
        elif end > len(view):
            raise ImageRejected("truncated: the file ends before the image does")
        elif not kind.isalpha() or kind[:1].isupper():
            raise ImageRejected(f"damaged: a PNG with an unexpected chunk {kind.decode('ascii', 'replace')}")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise ImageRejected(f"damaged: more than {MAX_CHUNKS} PNG chunks")


def _is_unaltered(view: memoryview, start: int, end: int) -> bool:
    checksum: int = struct.unpack_from(">I", view, end - 4)[0]
    return zlib.crc32(view[start + 4 : end - 4]) == checksum


def picture_only(view: memoryview) -> memoryview | bytes:
    """Return the file without ancillary chunks, except an EXIF chunk with the orientation if there is one.

    An animation becomes its default image, and damaged metadata is removed.

    Raises:
        ImageRejected: the picture is damaged, truncated, or inconsistent.
        struct.error: the file ends inside a chunk.
    """
    kept: list[memoryview | bytes] = []
    kept_from, exif, xmp, seen, previous = 0, b"", b"", set(), b""
    for kind, start, end in chunks(view):
        if start == 8:
            colour = _check_header(kind, view[start + 8 : end - 4])
        elif kind in seen and (kind in (b"IHDR", b"PLTE") or (kind == b"IDAT" and previous != b"IDAT")):
            raise ImageRejected(f"damaged: a PNG with a second {kind.decode()} chunk")
        elif kind == b"IDAT" and colour == _PALETTE and b"PLTE" not in seen:
            raise ImageRejected("damaged: a PNG without its palette")
        seen.add(kind)
        previous = kind
        if kind in _PICTURE and (kind != b"PLTE" or _is_palette_needed(colour, end - start - 12)):
            continue
        kept.append(view[kept_from:start])
        kept_from = end
        if kind in _METADATA and _is_unaltered(view, start, end):
            found_exif, found_xmp = _METADATA[kind](bytes(view[start + 8 : end - 4]))
            exif, xmp = found_exif or exif, found_xmp or xmp
    if b"IDAT" not in seen:
        raise ImageRejected("damaged: a PNG without picture data")
    orientation = turn(exif, xmp)
    if not kept and orientation == 1:
        return view[:end]
    kept.append(view[kept_from : end - 12])
    if orientation > 1:
        kept.append(chunk(b"eXIf", exif_block(orientation)))
    kept.append(view[end - 12 : end])
    return b"".join(kept)


def _check_header(kind: bytes, content: memoryview) -> int:
    """Check the header chunk, and return the colour type."""
    if kind != b"IHDR" or len(content) != 13:
        raise ImageRejected("damaged: a PNG that does not begin with its header")
    depth, colour, compression, filtering, interlace = content[8:13]
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ImageRejected("damaged: a PNG header with values that do not exist")
    return colour


def _is_palette_needed(colour: int, num_bytes: int) -> bool:
    if colour == _PALETTE and (not 0 < num_bytes <= 768 or num_bytes % 3):
        raise ImageRejected(f"damaged: a PNG with a palette of {num_bytes} bytes")
    return colour == _PALETTE  # in other colour types a palette is only a suggestion


def _from_exif(content: bytes) -> tuple[bytes, bytes]:
    return content, b""


def _from_text(content: bytes) -> tuple[bytes, bytes]:
    keyword, _, text = content.partition(b"\0")
    return (_raw_profile(text), b"") if keyword == _RAW_EXIF else (b"", b"")


def _from_compressed_text(content: bytes) -> tuple[bytes, bytes]:
    keyword, _, text = content.partition(b"\0")
    return (_raw_profile(_inflate(text[1:])), b"") if keyword == _RAW_EXIF else (b"", b"")


def _from_international_text(content: bytes) -> tuple[bytes, bytes]:
    keyword, _, text = content.partition(b"\0")
    if keyword != _XMP or len(text) < 2:
        return b"", b""
    packet = text[2:].split(b"\0", 2)[-1]  # after language and translated keyword
    return b"", _inflate(packet) if text[0] else packet


_METADATA = {
    b"eXIf": _from_exif,
    b"tEXt": _from_text,
    b"zTXt": _from_compressed_text,
    b"iTXt": _from_international_text,
}
"""Functions that return (EXIF, XMP) from the content of a chunk."""


def _inflate(compressed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(compressed, MAX_PROFILE_BYTES)
    except zlib.error:
        return b""  # only metadata is lost


def _raw_profile(text: bytes) -> bytes:
    """Parse ImageMagick's profile text: a line with a name, one with a length, then hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def chunk(kind: bytes, content: bytes) -> bytes:
    """Build a chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def has_broken_rows(view: memoryview) -> bool:
    """Whether a PNG lacks rows or the end of its data, or has a row with an invalid filter type.

    This decompresses the file. Decoders disagree about such files: Pillow fills with black, libpng rejects
    them.

    Raises:
        zlib.error: the compressed data are damaged.
    """
    header, passes = memoryview(b""), []
    stream, num_bytes = zlib.decompressobj(), 0
    for kind, start, end in chunks(view):
        if kind == b"IHDR":
            header = view[start + 8 : end - 4]
            passes = list(_passes(*struct.unpack(">IIBBBBB", header)))
        elif kind == b"IDAT":
            rows = stream.decompress(view[start + 8 : end - 4])
            for first, row_bytes, last in passes:
                # The first byte of each row is its filter type, 0 to 4.
                at = first + max(0, -(-(num_bytes - first) // row_bytes)) * row_bytes - num_bytes
                if max(rows[at : max(0, last - num_bytes) : row_bytes], default=0) > 4:
                    return True
            num_bytes += len(rows)
    return not stream.eof or num_bytes < max(last for _, _, last in passes)


def _passes(
    width: int, height: int, depth: int, colour: int, _: int, __: int, interlaced: int
) -> Iterator[tuple[int, int, int]]:
    """Yield start, bytes per row and end of each pass in the decompressed data."""
    position = 0
    for top, left, down, right in ADAM7_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), max(0, -(-(height - top) // down))
        if columns > 0:
            row_bytes = 1 + (columns * depth * _NUM_CHANNELS[colour] + 7) // 8
            yield position, row_bytes, position + rows * row_bytes
            position += rows * row_bytes

"""Check the segments of a JPEG, and remove those that do not belong to the picture."""

import re
import struct
from collections.abc import Iterator

from fruitstand.errors import ImageRejected
from fruitstand.images.formats.jpeg_tables import DAC, DHT, DQT, DRI, MAX_SIDE, PROGRESSIVE, SOS, Coding
from fruitstand.images.orientation import exif_block, turn

MAX_MARKERS = 1000
"""Real files have about a dozen; the limit bounds the time that a hostile file can cost."""
MAX_SCANS = 32
"""A progressive file has about ten; each scan costs a pass over all pixels."""
MAX_STRAY_BYTES = 2**16
"""Stray bytes between two segments that are skipped, as decoders do."""
MAX_WALKED_SCAN_BYTES = 2**18
"""Bytes of a sequential picture that are searched for misplaced markers, at 1 ns per byte."""

_TRUNCATED = "truncated: the file ends before the image does"
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_AFTER_A_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither stuffing, nor restart, nor fill bytes
_SOI, _EOI, _DNL = 0xD8, 0xD9, 0xDC
_APP0, _APP1, _APP14, _COM = 0xE0, 0xE1, 0xEE, 0xFE
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # TEM and the restart markers have no length
_FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, DAC}  # JPG shares the range, too
_DECODABLE_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))  # sequential, progressive; Huffman, arithmetic
_METADATA = frozenset((*range(0xE0, 0xF0), _COM))
_BETWEEN_SCANS = _METADATA | {DHT, DAC, SOS, DQT, _DNL, DRI}
_NEEDED_METADATA = {_APP0: (b"JFIF\0", 16), _APP14: (b"Adobe", 14)}
"""Segments that define the colour space: how they begin, and their minimum length in bytes."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def segments(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to and including the header of the first scan.

    Stray bytes, fill bytes and markers without content are skipped, as decoders do.

    Raises:
        ImageRejected: a segment is missing or truncated.
        IndexError: the file ends inside a segment's length.
    """
    position = 2
    for _ in range(MAX_MARKERS):
        start = position
        if view[start] != 0xFF or not 0 < view[start + 1] < 0xFF:
            found = _MARKER.search(view, position, position + MAX_STRAY_BYTES)
            if found is None:
                cut = position + MAX_STRAY_BYTES >= len(view)
                raise ImageRejected(_TRUNCATED if cut else "not an image: broken JPEG markers")
            start = found.start()
        marker = view[start + 1]
        if marker in _STANDALONE:
            position = start + 2
            continue
        if marker == _EOI:
            raise ImageRejected("damaged: a JPEG without picture data")
        if marker < 0xC0 or marker == _SOI:
            raise ImageRejected("not an image: broken JPEG markers")
        length = view[start + 2] << 8 | view[start + 3]
        position = start + 2 + length
        if length < 2:
            raise ImageRejected("damaged: broken JPEG markers")
        yield marker, start, position
        if marker == SOS:
            return
    raise ImageRejected(f"not an image: more than {MAX_MARKERS} JPEG markers before the picture")


def read_size(view: memoryview) -> tuple[int, int]:
    """Read width and height in pixels, before the EXIF orientation is applied.

    Raises:
        ImageRejected: no frame header, or a kind of JPEG that decoders do not read.
        IndexError, struct.error: the file ends inside its header.
    """
    for marker, start, _ in segments(view):
        if marker in _FRAMES:
            depth, height, width, num_channels = struct.unpack_from(">BHHB", view, start + 4)
            if marker not in _DECODABLE_FRAMES:
                raise ImageRejected("unsupported format: lossless or hierarchical JPEG; send a baseline one")
            if depth != 8:
                raise ImageRejected(f"unsupported format: JPEG with {depth} bits a channel; send one with 8")
            if num_channels not in (1, 3, 4):
                raise ImageRejected(f"unsupported format: JPEG with {num_channels} channels; send 1, 3 or 4")
            if max(width, height) > MAX_SIDE:
                raise ImageRejected(
                    f"too many pixels: {width} x {height}; a JPEG has {MAX_SIDE} a side at most"
                )
            return width, height
    raise ImageRejected("not an image: a JPEG without a frame header")


def is_progressive(view: memoryview) -> bool:
    """Whether the picture is progressive, so that a decoder must keep all of it in memory.

    Raises:
        ImageRejected, IndexError: as `segments`.
    """
    return any(marker in PROGRESSIVE for marker, _, _ in segments(view))


def picture_only(view: memoryview) -> memoryview | bytes:
    """Return the file without stray bytes and metadata, except an EXIF block with the orientation.

    Raises:
        ImageRejected: the file is truncated or inconsistent.
        IndexError: the file ends inside a segment's length.
    """
    kept: list[memoryview | bytes] = []
    kept_from, position, num_frames, coding = 0, 2, 0, Coding()
    exif, xmp = b"", b""
    for marker, start, end in segments(view):
        if end > len(view):
            raise ImageRejected(_TRUNCATED)
        is_dropped = False
        if marker in _FRAMES:
            num_frames += 1
            coding.define_frame(marker, view[start + 4 : end])
        elif marker not in _BETWEEN_SCANS:
            raise ImageRejected("damaged: broken JPEG markers")
        elif marker not in _METADATA:
            if marker == SOS and num_frames != 1:
                break
            coding.define(marker, view[start + 4 : end])
        elif not _is_needed(marker, view[start:end]):
            is_dropped = True
            if marker == _APP1:
                content = bytes(view[start + 4 : end])
                exif = exif or (content if content.startswith(_EXIF) else b"")
                xmp = xmp or (content if content.startswith(_XMP) else b"")
        if is_dropped or start != position:
            kept.append(view[kept_from:position])
            kept_from = end if is_dropped else start
        position = end
    if num_frames != 1:
        raise ImageRejected(f"damaged: a JPEG with {num_frames} frame headers")
    end = _end_of_scans(view, position, coding)
    orientation = turn(exif, xmp)
    if not kept and orientation == 1 and view[end + 1] == _EOI:
        return view[: end + 2]
    parts = [*kept, view[kept_from:end]]
    parts[0] = parts[0][2:]
    return b"".join((b"\xff\xd8", _exif_segment(orientation), *parts, b"\xff\xd9"))


def _is_needed(marker: int, segment: memoryview) -> bool:
    start, least_bytes = _NEEDED_METADATA.get(marker, (b"", 2**16))
    return len(segment) >= 2 + least_bytes and bytes(segment[4 : 4 + len(start)]) == start


def _exif_segment(orientation: int) -> bytes:
    if orientation == 1:
        return b""
    content = _EXIF + exif_block(orientation)
    return struct.pack(">HH", 0xFFE1, 2 + len(content)) + content


def _end_of_scans(view: memoryview, position: int, coding: Coding) -> int:
    """Find the end of the picture: the end marker, or the start of another picture in the file.

    Args:
        view: the file.
        position: start of the first scan's data.
        coding: tables and frame of the file. A progressive file has many scans, which are all walked. Others
            nearly always have one, whose end is searched from the end of the file.
    """
    num_scans, is_progressive = 1, coding.frame in PROGRESSIVE
    limit = len(view) if is_progressive else min(len(view), position + MAX_WALKED_SCAN_BYTES)
    for _ in range(MAX_MARKERS):
        found = _AFTER_A_SCAN.search(view, position, limit)
        if found is None:
            rest = max(position, limit - 1)  # a marker may straddle the limit
            end = bytes(view[rest:]).rfind(b"\xff\xd9")
            if end < 0:
                raise ImageRejected("truncated: the JPEG has no end marker, so a part of it may be missing")
            return rest + end
        start = found.start()
        marker = view[start + 1]
        if marker in (_EOI, _SOI):
            return start
        length = view[start + 2] << 8 | view[start + 3]
        position = start + 2 + length
        if marker not in _BETWEEN_SCANS or length < 2:
            raise ImageRejected("damaged: a marker inside the JPEG's picture data that does not belong there")
        if position > len(view):
            raise ImageRejected(_TRUNCATED)
        coding.define(marker, view[start + 4 : position])
        num_scans += marker == SOS
        if num_scans > MAX_SCANS:
            raise ImageRejected(f"damaged: a JPEG of more than {MAX_SCANS} scans")
    raise ImageRejected(f"damaged: more than {MAX_MARKERS} JPEG markers")

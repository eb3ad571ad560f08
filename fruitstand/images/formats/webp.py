"""Check the chunks of a WebP, and remove those that do not belong to the picture."""

import struct

from fruitstand.errors import ImageRejected
from fruitstand.images.orientation import exif_block, turn

MAX_CHUNKS = 1000
MIN_DECODER_BYTES = 32
"""DALI's decoder needs at least this many bytes, so smaller files are padded."""

_TRUNCATED = "truncated: the file ends before the image does"
_EXTENDED_BYTES = 10
_EXIF_FLAG, _XMP_FLAG, _ANIMATION_FLAG = 0x08, 0x04, 0x02
_PICTURE_FLAGS = 0x10 | _ANIMATION_FLAG  # alpha, animation
_STILL, _ANIMATED = frozenset((b"VP8 ", b"VP8L")), frozenset((b"ANMF",))
_BEFORE_A_PICTURE = frozenset((b"ALPH", b"ANIM"))


def read_size(view: memoryview) -> tuple[int, int]:
    """Read width and height in pixels, before the EXIF orientation is applied.

    Raises:
        ImageRejected: the first chunk is unknown.
        struct.error, IndexError: the file ends inside its header.
    """
    kind = bytes(view[12:16])
    if kind == b"VP8X":
        width, height = (int.from_bytes(view[at : at + 3], "little") for at in (24, 27))
        return 1 + width, 1 + height
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", view, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", view, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageRejected("not an image: an unknown WebP chunk")


def picture_only(view: memoryview) -> memoryview | bytes:
    """Return the file without metadata, except an EXIF block with the orientation if there is one.

    Raises:
        ImageRejected: the file is truncated or inconsistent.
        struct.error, IndexError: the file ends inside its header.
    """
    (size,) = struct.unpack_from("<I", view, 4)
    end = size + 8
    if end > len(view):
        raise ImageRejected(_TRUNCATED)
    view = view[:end]  # DALI would read past the end of a damaged picture
    if bytes(view[12:16]) == b"VP8X":
        return _without_metadata(view)
    _check_start_code(bytes(view[12:16]), view[20:26])
    return view if end >= MIN_DECODER_BYTES else bytes(view).ljust(MIN_DECODER_BYTES, b"\0")


def _check_start_code(kind: bytes, content: memoryview) -> None:
    if (kind == b"VP8 " and bytes(content[3:6]) != b"\x9d\x01\x2a") or (
        kind == b"VP8L" and content[0] != 0x2F
    ):
        raise ImageRejected("damaged: a WebP without its start code")


def _without_metadata(view: memoryview) -> memoryview | bytes:
    (extended_bytes,) = struct.unpack_from("<I", view, 16)
    if extended_bytes != _EXTENDED_BYTES:
        raise ImageRejected("damaged: a WebP with a header of no known length")
    flags, position = view[20], 20 + extended_bytes
    pictures = _ANIMATED if flags & _ANIMATION_FLAG else _STILL
    kept: list[memoryview | bytes] = []
    exif, xmp, num_dropped, has_picture = b"", b"", 0, False
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(view):
            break
        kind, length = struct.unpack_from("<4sI", view, position)
        content = view[position + 8 : position + 8 + length]
        if not has_picture and (kind in pictures or kind in _BEFORE_A_PICTURE):
            if len(content) < length:
                raise ImageRejected(_TRUNCATED)
            _check_start_code(kind, content)
            kept.append(view[position : position + 8 + length])
            kept.append(b"\0" * (length % 2))
            has_picture = kind in pictures
        else:
            num_dropped += 1
            if kind == b"EXIF" and flags & _EXIF_FLAG:
                exif = exif or bytes(content)
            elif kind == b"XMP " and flags & _XMP_FLAG:
                xmp = xmp or bytes(content)
        position += 8 + length + length % 2
    else:
        raise ImageRejected(f"damaged: more than {MAX_CHUNKS} WebP chunks")
    if not has_picture:
        raise ImageRejected("damaged: a WebP without picture data")
    orientation = turn(exif, xmp)
    if not num_dropped and not flags & ~_PICTURE_FLAGS:
        return view
    flags &= _PICTURE_FLAGS
    if orientation > 1:
        flags |= _EXIF_FLAG
        block = exif_block(orientation)
        kept.insert(0, b"EXIF" + struct.pack("<I", len(block)) + block)
    body = b"".join((b"WEBPVP8X", view[16:20], bytes((flags, 0, 0, 0)), view[24:30], *kept))
    return b"RIFF" + struct.pack("<I", len(body)) + body

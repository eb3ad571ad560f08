"""Check the header of a BMP for consistency, and against the length of the file."""

import struct

from fruitstand.errors import ImageRejected

_OS2_HEADER_BYTES, _FIRST_ALPHA_HEADER_BYTES = 12, 56
_HEADER_BYTES = frozenset((_OS2_HEADER_BYTES, 40, 52, 56, 64, 108, 124))
_PLAIN, _BITFIELDS = 0, 3
_DEPTHS = frozenset((1, 4, 8, 24, 32))
_BGR = (0xFF0000, 0xFF00, 0xFF)
_WITHOUT_ALPHA = frozenset((_BGR,))
_WITH_ALPHA = frozenset(
    (
        (*_BGR, 0),
        (*_BGR, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
    )
)
_MASKS = {40: _WITHOUT_ALPHA, 52: _WITHOUT_ALPHA, **dict.fromkeys((56, 64, 108, 124), _WITH_ALPHA)}
"""The channel masks (red, green, blue, alpha) that decoders agree on, by length of the header."""


def read_size(view: memoryview) -> tuple[int, int]:
    """Width and height in pixels.

    Raises:
        struct.error: the file ends inside its header.
    """
    if struct.unpack_from("<I", view, 14)[0] == _OS2_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", view, 18)
    else:
        width, height = struct.unpack_from("<ii", view, 18)
    return width, abs(height)


def picture_only(view: memoryview) -> memoryview:
    """Return the file up to the end of the picture; a BMP has no metadata to remove.

    Raises:
        ImageRejected: the file is truncated, or of a kind that decoders read differently.
        struct.error: the file ends inside its header.
    """
    offset, header_bytes = struct.unpack_from("<II", view, 10)
    if header_bytes not in _HEADER_BYTES:
        raise ImageRejected(f"damaged: a BMP with a header of {header_bytes} bytes, which no version has")
    masks_bytes, num_colours, entry_bytes, compression = 0, 0, 4, _PLAIN
    if header_bytes == _OS2_HEADER_BYTES:
        (depth,) = struct.unpack_from("<H", view, 24)
        entry_bytes = 3
    else:
        depth, compression = struct.unpack_from("<HI", view, 28)
        (num_colours,) = struct.unpack_from("<I", view, 46)
    if depth not in _DEPTHS or compression not in (_PLAIN, _BITFIELDS):
        raise ImageRejected("unsupported format: a BMP with compression or 16 bits a pixel; send it as PNG")
    if compression == _BITFIELDS:
        masks = struct.unpack_from("<IIII" if header_bytes >= _FIRST_ALPHA_HEADER_BYTES else "<III", view, 54)
        if depth != 32 or masks not in _MASKS.get(header_bytes, ()):
            raise ImageRejected("unsupported format: a BMP with channel masks of its own; send it as PNG")
        masks_bytes = 12 if header_bytes == 40 else 0
    palette_bytes = entry_bytes * (num_colours or 1 << depth) if depth <= 8 else 0
    palette_start = 14 + header_bytes + masks_bytes
    if palette_bytes > entry_bytes << min(depth, 8) or (palette_bytes and offset <= palette_start):
        raise ImageRejected("damaged: a BMP whose palette does not fit")
    width, height = read_size(view)
    row_bytes = (width * depth + 31) // 32 * 4
    end = max(offset + row_bytes * height, palette_start + palette_bytes)
    if offset < palette_start or end > len(view):
        raise ImageRejected("truncated: the file ends before the image does")
    return view[:end]

"""Read the orientation of a picture from EXIF or XMP, and write the smallest EXIF block that holds it."""

import re
import struct

_TAG = 0x0112
_IDENTIFIER = b"Exif\0\0"
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""Integer types of TIFF fields; the standard allows only SHORT (3), but cameras write others."""
_XMP = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)([0-9])")


def turn(exif: bytes, xmp: bytes) -> int:
    """The orientation in a file's metadata; XMP is used only if EXIF has none.

    Args:
        exif: the EXIF block, with or without its identifier; empty if the file has none.
        xmp: the XMP packet; empty if the file has none.

    Returns:
        The EXIF orientation, 2 to 8; or 1 if there is none, or for broken metadata and unknown values.

    Source:
        Pillow 13 `ImageOps.exif_transpose`: the same precedence.
    """
    found = _from_exif(exif) if exif else None
    if found is None and xmp:
        match = _XMP.search(xmp)
        found = int(match[1]) if match else None
    return found if found is not None and 2 <= found <= 8 else 1


def _from_exif(block: bytes) -> int | None:
    while block.startswith(_IDENTIFIER):
        block = block[len(_IDENTIFIER) :]
    order = _BYTE_ORDERS.get(block[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (num_entries,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag == _TAG:
                number = _INTEGER_FORMATS.get(kind)
                return int(struct.unpack_from(order + number, block, entry + 8)[0]) if number else 0
    except struct.error:
        pass  # the block is truncated and holds no orientation before its end
    return None


def exif_block(orientation: int) -> bytes:
    """A TIFF structure with only this tag, 26 bytes, without the identifier that JPEG adds."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, _TAG, 3, 1, orientation, 0, 0)

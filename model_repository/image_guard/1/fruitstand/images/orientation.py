"""How a picture has to be turned: read from EXIF or XMP, written as the smallest EXIF block that says so."""

import re
import struct

_TAG = 0x0112
_IDENTIFIER = b"Exif\0\0"
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""TIFF's field types; the standard allows SHORT (3) only, cameras write others."""
_XMP = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)([0-9])")


def turn(exif: bytes, xmp: bytes) -> int:
    """The EXIF orientation of a file's metadata; XMP counts where EXIF says nothing.

    Args:
        exif: the EXIF block, with or without its identifier; empty where the file has none.
        xmp: the XMP packet; empty where the file has none.

    Returns:
        2 to 8; 1 where the picture stays as it is, which broken metadata and unknown values mean too.

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
        pass  # the block ends early: what was not found until here is not there
    return None


def exif_block(orientation: int) -> bytes:
    """A TIFF structure with this tag alone, 26 bytes, without the identifier that JPEG puts in front."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, _TAG, 3, 1, orientation, 0, 0)

"""PNG and BMP files that Pillow does not write."""

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fruitstand.images.formats.png import ADAM7_PASSES, SIGNATURE, chunk

PNG_GREY, PNG_RGB, PNG_PALETTE, PNG_GREY_ALPHA, PNG_RGBA = 0, 2, 3, 4, 6
BMP_RGB, BMP_RLE8, BMP_BITFIELDS = 0, 1, 3


def png(
    samples: npt.NDArray[np.integer[Any]],
    *,
    colour: int,
    depth: int = 8,
    interlaced: bool = False,
    extra: bytes = b"",
    num_rows: int | None = None,
) -> bytes:
    """A PNG of any colour type and depth.

    Args:
        samples: (H, W) or (H, W, channels), 0 to 2**depth - 1.
        colour: one of the `PNG_` colour types.
        depth: bits a sample.
        interlaced: in seven passes.
        extra: chunks between header and picture.
        num_rows: picture data of so many rows only; None writes all.
    """
    height, width = samples.shape[:2]
    passes = ADAM7_PASSES if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(
        b"\0" + _packed(row, depth)
        for top, left, down, right in passes
        for row in samples[top:num_rows:down, left::right]
        if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return SIGNATURE + chunks + chunk(b"IEND", b"")


def _packed(row: npt.NDArray[np.integer[Any]], depth: int) -> bytes:
    if depth >= 8:
        return row.astype(">u2" if depth == 16 else np.uint8).tobytes()
    bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits).tobytes()


def bmp(
    rows: bytes,
    *,
    size: tuple[int, int],
    depth: int,
    compression: int = BMP_RGB,
    between: bytes = b"",
) -> bytes:
    """A BMP with the 40-byte header.

    Args:
        rows: as they lie in the file: bottom up, each padded to four bytes.
        size: width and height, pixels; a negative height means top down.
        depth: bits a pixel.
        compression: one of the `BMP_` numbers.
        between: channel masks or palette, between header and rows.
    """
    offset = 14 + 40 + len(between)
    return (
        b"BM"
        + struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
        + struct.pack("<IiiHHIIiiII", 40, *size, 1, depth, compression, len(rows), 0, 0, 0, 0)
        + between
        + rows
    )

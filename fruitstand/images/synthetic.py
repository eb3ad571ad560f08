"""Encoded images made by code: what Pillow writes, and what it does not.

numpy and Pillow are imported inside, as everywhere in `fruitstand`.
"""

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

from fruitstand.images.png import ADAM7_PASSES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

EXIF_ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY, PNG_RGB, PNG_PALETTE, PNG_GREY_ALPHA, PNG_RGBA = 0, 2, 3, 4, 6
BMP_RGB, BMP_RLE8, BMP_BITFIELDS = 0, 1, 3

SIZES = (
    (100, 100), (99, 101), (120, 101), (97, 61), (150, 120), (200, 100), (201, 333), (333, 200),
    (100, 300), (512, 64), (640, 480), (64, 64), (224, 224), (1, 1),
)  # fmt: skip
"""Width and height, pixels."""
QUALITIES = (30, 60, 75, 85, 95, 100)


def pattern(width: int, height: int, mode: str = "RGB", *, phase: float = 0.0) -> "Image.Image":
    """A smooth colourful picture.

    Args:
        width: pixels.
        height: pixels.
        mode: one of Pillow's.
        phase: shifts the picture; others give other pictures.
    """
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width]
    channels = [
        127 + 100 * np.sin(x / 9 + y / 17 + phase),
        127 + 100 * np.cos(x / 13 - 2 * phase),
        (x + y + 40 * phase) % 256 * 0.9,
    ]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def encode(image: "Image.Image", image_format: str = "JPEG", **options: Any) -> bytes:
    """The picture as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(
    orientation: int, size: tuple[int, int] = (150, 120), image_format: str = "JPEG"
) -> bytes:
    """A file whose EXIF says how to turn it, 1 to 8."""
    image = pattern(*size)
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = orientation
    return encode(image, image_format, exif=exif.tobytes())


def supported_images() -> dict[str, bytes]:
    """More than 200 images by name: all formats, modes, sizes, aspect ratios, qualities, orientations.

    Every decoder has to make the same pixels of them, but for rounding.
    """
    import numpy as np
    from PIL import Image

    images = {}
    for number, (width, height) in enumerate(SIZES):
        name, picture = f"{width}x{height}", pattern(width, height, phase=number)
        for quality in QUALITIES:
            images[f"jpeg_{name}_q{quality}"] = encode(picture, quality=quality)
        images[f"jpeg_{name}_444"] = encode(picture, subsampling=0)
        images[f"jpeg_{name}_progressive"] = encode(picture, progressive=True)
        images[f"jpeg_{name}_grey"] = encode(picture.convert("L"))
        images[f"png_{name}"] = encode(picture, "PNG")
        images[f"webp_{name}"] = encode(picture, "WEBP")
        images[f"webp_{name}_lossless"] = encode(picture, "WEBP", lossless=True)
        images[f"bmp_{name}"] = encode(picture, "BMP")
    for size in ((150, 120), (100, 100), (90, 200)):
        for orientation in range(1, 9):
            name = f"jpeg_{size[0]}x{size[1]}_exif_{orientation}"
            images[name] = with_orientation(orientation, size)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        images[f"png_{mode}"] = encode(pattern(150, 120, mode), "PNG")
    ramp = np.arange(15_000, dtype=np.uint16).reshape(100, 150) * 4
    images["png_16bit"] = encode(Image.fromarray(ramp), "PNG")
    images["jpeg_cmyk"] = encode(pattern(130, 100, "CMYK"))
    return images


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    samples: "npt.NDArray[np.integer[Any]]",
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
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows))
    return PNG_SIGNATURE + chunks + png_chunk(b"IEND", b"")


def canary_image(side: int = 16) -> bytes:
    """A grey PNG: every decoder has to make the same pixels of it."""
    import numpy as np

    return png(np.full((side, side, 3), 128), colour=PNG_RGB)


def _packed(row: "npt.NDArray[np.integer[Any]]", depth: int) -> bytes:
    import numpy as np

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

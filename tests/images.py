"""Encoded images made by code: every kind the decoders have to agree on, and every kind they refuse."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def pattern(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth colourful picture, in any of Pillow's modes."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 100 * np.sin(x / 9 + y / 17), 127 + 100 * np.cos(x / 13), (x + y) % 256 * 0.9]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    """The picture as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(orientation: int, size: tuple[int, int] = (150, 120)) -> bytes:
    """A JPEG whose EXIF says how to turn it."""
    image = pattern(*size)
    exif = image.getexif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


def accepted() -> dict[str, bytes]:
    """Images that are decoded, by name."""
    sizes = [(100, 100), (333, 200), (201, 333), (97, 61), (120, 101), (1, 1), (640, 480), (100, 300)]
    images = {f"jpeg_{w}x{h}": encode(pattern(w, h)) for w, h in sizes}
    images |= {f"jpeg_q{q}": encode(pattern(150, 120), quality=q) for q in (30, 75, 100)}
    images |= {f"jpeg_exif_{o}": with_orientation(o) for o in range(1, 9)}
    images |= {f"png_{m}": encode(pattern(150, 120, m), "PNG") for m in ("RGB", "L", "P", "RGBA", "LA", "1")}
    images["png_16bit"] = encode(
        Image.fromarray(np.arange(15000, dtype=np.uint16).reshape(100, 150) * 4), "PNG"
    )
    images["jpeg_grey"] = encode(pattern(130, 100, "L"))
    images["jpeg_cmyk"] = encode(pattern(130, 100, "CMYK"))
    images["jpeg_progressive"] = encode(pattern(120, 101), progressive=True)
    images["jpeg_444"] = encode(pattern(120, 101), subsampling=0)
    images["webp_lossy"] = encode(pattern(120, 100), "WEBP")
    images["webp_lossless"] = encode(pattern(120, 100), "WEBP", lossless=True)
    images["bmp"] = encode(pattern(120, 101), "BMP")
    return images


def png_bomb(side: int = 20_000) -> bytes:
    """A small PNG whose header announces far too many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(side)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def refused() -> dict[str, tuple[bytes, str]]:
    """Files that are refused, with what the reason has to say."""
    jpeg, png = encode(pattern(333, 200)), encode(pattern(150, 120), "PNG")
    return {
        "empty": (b"", "empty"),
        "one_byte": (b"\xff", "not an image"),
        "text": (b"hello, this is no image at all" * 10, "not an image"),
        "gif": (encode(pattern(120, 101, "P"), "GIF"), "unsupported format: GIF"),
        "tiff": (encode(pattern(120, 101), "TIFF"), "unsupported format: TIFF"),
        "jpeg_header_only": (jpeg[:20], "truncated"),
        "jpeg_half": (jpeg[: len(jpeg) // 2], "damaged or truncated"),
        "png_half": (png[: len(png) // 2], "damaged or truncated"),
        "jpeg_magic_only": (b"\xff\xd8\xff\xe0" + b"junk" * 100, "truncated"),
        "png_bomb": (png_bomb(), "too many pixels"),
    }

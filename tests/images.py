"""Files that are refused, made by code; those that are accepted come from `export.corpus`."""

import struct
import zlib

from export.corpus import encode, pattern


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

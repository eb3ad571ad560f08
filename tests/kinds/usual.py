"""How each kind of input is made: as programs usually write it, cut, damaged, or no image at all."""

import base64
import re
import struct
from typing import Any

from fruitstand.contract import Preprocessing
from fruitstand.images.formats.png import SIGNATURE, chunk
from fruitstand.images.synthetic import encode, pattern, with_orientation
from tests.kinds.odd import (
    HEIGHT,
    WIDTH,
    Rows,
    inconsistent_jpegs,
    odd_bmps,
    odd_jpegs,
    odd_pngs,
    odd_webps,
)
from tests.kinds.writers import (
    BMP_BITFIELDS,
    BMP_RLE8,
    PNG_GREY,
    PNG_GREY_ALPHA,
    PNG_PALETTE,
    PNG_RGB,
    PNG_RGBA,
    bmp,
    png,
)

_ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcp"
    "LDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjIyMjIyMjIyMjIyMjL/yQARCAAoADADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDShzMORCN2BbmYqV1E"
    "kXguI3pV3nYHKLI690qLU/2kd01zlo8ZVW8wJlnIJLWRI1jf8tg/lYS6j5ikTBKWmcov0LZTrkl7i9JiMn/kMYrJrjFpYpQj"
    "N+7fMSd/5KIsYgOSf9Zlgb6t49lXiyoYrDGynMbF3LLd84XFU2YRgRpdPIDRgHQ8iwvh0RubW9DGEeXh96hSV7OFVYDFkzub"
    "nUEw/Dnik/Vvu1niEjDXTNmK/wDVSRubmkKzWQOsTS3bbOnqbdq6IKz/2Q=="
)
"""`pattern(48, 40)`, coded by libjpeg-turbo's `jpegtran -arithmetic`: Pillow cannot write it."""


def kind_rows() -> Rows:
    """Every kind: accepted, damaged, unsupported, too large, no image at all."""
    return [
        *_jpeg(), *_jpeg_damaged(), *odd_jpegs(), *inconsistent_jpegs(),
        *_png(), *_png_damaged(), *odd_pngs(), *_webp(), *odd_webps(), *_bmp(), *odd_bmps(), *_others(),
    ]  # fmt: skip


def _picture(**options: Any) -> bytes:
    return encode(pattern(WIDTH, HEIGHT), **options)


def _jpeg() -> Rows:
    picture, plain = pattern(WIDTH, HEIGHT), _picture()
    thumbnail = _exif_with_thumbnail(encode(picture.resize((40, 32))))
    turned = [(f"jpeg_exif_{n}", with_orientation(n), "", "turned as its EXIF says") for n in range(2, 9)]
    return [
        ("jpeg", plain, "", ""),
        ("jpeg_444", _picture(subsampling=0), "", "full chroma"),
        ("jpeg_422", _picture(subsampling=1), "", "half chroma"),
        ("jpeg_progressive", _picture(progressive=True), "", ""),
        ("jpeg_arithmetic", _ARITHMETIC_JPEG, "", "arithmetic-coded"),
        ("jpeg_restart", _picture(restart_marker_blocks=4), "", "restart markers"),
        ("jpeg_grey", encode(picture.convert("L")), "", "the grey in all three channels"),
        ("jpeg_cmyk", encode(picture.convert("CMYK")), "", "converted by formula, without a profile"),
        ("jpeg_rgb", _picture(keep_rgb=True), "", "no colour transform in the file"),
        *turned,
        ("jpeg_exif_9", with_orientation(9), "", "no such orientation: not turned"),
        ("jpeg_thumbnail", _picture(exif=thumbnail), "", "the thumbnail is ignored"),
        ("jpeg_icc", _picture(icc_profile=bytes(300)), "", "the colour profile is ignored"),
        ("jpeg_comment", _picture(comment=b"x" * 3000), "", ""),
        ("jpeg_without_jfif", plain[:2] + plain[20:], "", ""),
        ("jpeg_fill_bytes", plain[:2] + b"\xff\xff" + plain[2:], "", ""),
        ("jpeg_without_tables", _overwritten(plain, plain.index(b"\xff\xc4"), b"\0\0"), "",
         "decoders take the standard ones"),
        ("jpeg_1x1", encode(pattern(1, 1)), "", "scaled up"),
        ("jpeg_zero_padded", plain + bytes(500), "", "as in a request of several images"),
        ("jpeg_trailing_garbage", plain + b"garbage" * 50, "", "what follows the end is ignored"),
        ("jpeg_two_pictures", _two_pictures(), "", "MPO: the first picture"),
        ("jpeg_flipped_bits", _overwritten(plain, _scan_start(plain) + 200, b"\x55" * 60), "",
         "damage inside the picture data cannot be told from a picture"),
        ("jpeg_end_pasted_on", plain[: len(plain) // 2] + b"\xff\xd9", "",
         "as above; the missing part is grey"),
    ]  # fmt: skip


def _jpeg_damaged() -> Rows:
    plain, progressive = _picture(), _picture(progressive=True)
    half, scan, frame = len(plain) // 2, _scan_start(plain), plain.index(b"\xff\xc0")
    tables = plain.index(b"\xff\xc4")
    first_scan, next_scan = (found.start() for found in list(re.finditer(b"\xff\xda", progressive))[:2])
    many_scans = progressive[:first_scan] + progressive[first_scan:next_scan] * 40 + b"\xff\xd9"
    thumbnail = _picture(exif=_exif_with_thumbnail(plain))
    return [
        ("jpeg_header_only", plain[:20], "truncated", ""),
        ("jpeg_magic_only", b"\xff\xd8\xff\xe0" + b"junk" * 100, "truncated", ""),
        ("jpeg_half", plain[:half], "truncated", ""),
        ("jpeg_half_zero_padded", plain[:half] + bytes(2000), "truncated", ""),
        ("jpeg_without_end", plain[:-2], "truncated", "the end marker is missing"),
        ("jpeg_progressive_half", progressive[: len(progressive) // 2], "truncated", ""),
        ("jpeg_thumbnail_half", thumbnail[:-700], "truncated", "though the thumbnail is whole"),
        ("jpeg_broken_tables", _overwritten(plain, tables + 5, b"\xff" * 16), "damaged", ""),
        ("jpeg_without_picture", plain[:scan] + b"\xff\xd9", "damaged", ""),
        ("jpeg_many_scans", many_scans, "damaged", "more than 32 scans cost too much time"),
        ("jpeg_12_bit", _overwritten(plain, frame + 4, b"\x0c"), "unsupported format", ""),
        ("jpeg_lossless", _overwritten(plain, frame + 1, b"\xc3"), "unsupported format", ""),
        ("jpeg_two_channels", _overwritten(plain, frame + 9, b"\2"), "unsupported format", ""),
    ]


def _png() -> Rows:
    import numpy as np

    picture, plain = pattern(WIDTH, HEIGHT), _picture(image_format="PNG")
    rgb = np.asarray(picture)
    grey = np.asarray(picture.convert("L"))
    wide = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 3).reshape(HEIGHT, WIDTH)
    rgb16 = rgb.astype(np.uint16) * 257
    palette = chunk(b"PLTE", bytes(range(48)))
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    colours = picture.quantize(64)
    animated = _picture(image_format="PNG", save_all=True, append_images=[pattern(WIDTH, HEIGHT, phase=2)])
    return [
        ("png", plain, "", ""),
        ("png_rgba", png(np.dstack([rgb, grey]), colour=PNG_RGBA), "", "alpha is dropped"),
        ("png_transparent_colour", _picture(image_format="PNG", transparency=(127, 227, 0)), "",
         "as above"),
        ("png_palette", encode(colours, "PNG"), "", ""),
        ("png_palette_alpha", encode(colours, "PNG", transparency=bytes(range(64))), "", "alpha is dropped"),
        ("png_palette_4_bit", png(grey >> 4, colour=PNG_PALETTE, depth=4, extra=palette), "", ""),
        ("png_grey", encode(picture.convert("L"), "PNG"), "", "the grey in all three channels"),
        ("png_grey_alpha", encode(picture.convert("LA"), "PNG"), "", "alpha is dropped"),
        ("png_1_bit", encode(picture.convert("1"), "PNG"), "", "black and white"),
        ("png_2_bit", png(grey >> 6, colour=PNG_GREY, depth=2), "", ""),
        ("png_4_bit", png(grey >> 4, colour=PNG_GREY, depth=4), "", ""),
        ("png_grey_16_bit", png(wide, colour=PNG_GREY, depth=16), "", "the upper 8 bits"),
        ("png_grey_alpha_16_bit", png(np.dstack([wide, wide]), colour=PNG_GREY_ALPHA, depth=16), "",
         "the upper 8 bits, alpha is dropped"),
        ("png_rgb_16_bit", png(rgb16, colour=PNG_RGB, depth=16), "", "the upper 8 bits"),
        ("png_rgba_16_bit", png(np.dstack([rgb16, wide]), colour=PNG_RGBA, depth=16), "",
         "the upper 8 bits, alpha is dropped"),
        ("png_interlaced", png(rgb, colour=PNG_RGB, interlaced=True), "", ""),
        ("png_interlaced_16_bit", png(wide, colour=PNG_GREY, depth=16, interlaced=True), "",
         "the upper 8 bits"),
        ("png_gamma", png(rgb, colour=PNG_RGB, extra=gamma), "", "gamma is ignored"),
        ("png_icc", _picture(image_format="PNG", icc_profile=bytes(300)), "",
         "the colour profile is ignored"),
        ("png_exif_6", with_orientation(6, image_format="PNG"), "", "turned as its EXIF says"),
        ("png_animated", animated, "", "the first frame"),
        ("png_zero_padded", plain + bytes(500), "", "as in a request of several images"),
        ("png_trailing_garbage", plain + b"garbage" * 50, "", "what follows the end is ignored"),
    ]  # fmt: skip


def _png_damaged() -> Rows:
    import numpy as np

    rgb = np.asarray(pattern(WIDTH, HEIGHT))
    grey = rgb[..., 1]
    plain = _picture(image_format="PNG")
    header, data = plain[:33], plain.index(b"IDAT")
    bomb = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, PNG_RGB, 0, 0, 0))
    return [
        ("png_half", plain[: len(plain) // 2], "truncated", ""),
        ("png_without_end", plain[:-12], "truncated", "the end chunk is missing"),
        ("png_flipped_bit", _overwritten(plain, data + 1000, bytes([plain[data + 1000] ^ 1])), "damaged",
         "a checksum says so"),
        ("png_header_checksum", _overwritten(plain, 29, bytes([plain[29] ^ 1])), "damaged", ""),
        ("png_unknown_chunk", header + chunk(b"ABCD", b"x") + plain[33:], "damaged",
         "a critical one"),
        ("png_without_palette", png(grey >> 4, colour=PNG_PALETTE, depth=4), "damaged", ""),
        ("png_without_picture", header + chunk(b"IEND", b""), "damaged", ""),
        ("png_missing_rows", png(rgb, colour=PNG_RGB, num_rows=60), "damaged",
         "half of the rows, though every checksum is right"),
        ("png_bomb", SIGNATURE + bomb + plain[33:], "too many pixels", "20,000 x 20,000"),
    ]  # fmt: skip


def _webp() -> Rows:
    import numpy as np
    from PIL import Image

    picture = pattern(WIDTH, HEIGHT)
    plain, lossless = encode(picture, "WEBP"), encode(picture, "WEBP", lossless=True)
    alpha = Image.fromarray(np.dstack([np.asarray(picture), np.asarray(picture.convert("L"))]))
    animated = encode(
        picture, "WEBP", save_all=True, append_images=[pattern(WIDTH, HEIGHT, phase=2)], duration=100
    )
    half = len(plain) // 2
    sizes_rewritten = (
        plain[:4] + struct.pack("<I", half - 8) + plain[8:16] + struct.pack("<I", half - 20) + plain[20:half]
    )
    return [
        ("webp", plain, "", ""),
        ("webp_lossless", lossless, "", ""),
        ("webp_alpha", encode(alpha, "WEBP"), "", "alpha is dropped"),
        ("webp_alpha_lossless", encode(alpha, "WEBP", lossless=True), "", "alpha is dropped"),
        ("webp_exif_6", with_orientation(6, image_format="WEBP"), "", "turned as its EXIF says"),
        ("webp_icc", encode(picture, "WEBP", icc_profile=bytes(300)), "", "the colour profile is ignored"),
        ("webp_animated", animated, "", "the first frame"),
        ("webp_zero_padded", plain + bytes(500), "", "as in a request of several images"),
        ("webp_trailing_garbage", plain + b"garbage" * 50, "", "what follows the end is ignored"),
        ("webp_half", plain[:half], "truncated", ""),
        ("webp_lossless_half", lossless[: len(lossless) // 2], "truncated", ""),
        ("webp_last_byte_missing", plain[:-1], "truncated", ""),
        ("webp_half_sizes_rewritten", sizes_rewritten, "damaged", "only a decoder finds out"),
        ("webp_overwritten", _overwritten(plain, 60, bytes(40)), "damaged", "only a decoder finds out"),
    ]


def _bmp() -> Rows:
    import numpy as np

    picture = pattern(WIDTH, HEIGHT)
    rgb, grey, size = np.asarray(picture), np.asarray(picture.convert("L")), (WIDTH, HEIGHT)
    plain = encode(picture, "BMP")
    palette = b"".join(bytes([i, 255 - i, i // 2, 0]) for i in range(256))
    rows8 = np.pad(grey[::-1], ((0, 0), (0, -WIDTH % 4))).tobytes()
    rows4 = np.pad(grey[::-1, ::2] & 0xF0 | grey[::-1, 1::2] >> 4, ((0, 0), (0, -WIDTH // 2 % 4))).tobytes()
    rows32 = np.dstack([rgb[::-1, :, ::-1], np.zeros_like(grey)]).tobytes()
    run_lengths = b"".join(b"".join(b"\1" + bytes([v]) for v in row) + b"\0\0" for row in grey[::-1])
    high = rgb[::-1].astype(np.uint16)
    rows555 = ((high[..., 0] >> 3) << 10 | (high[..., 1] >> 3) << 5 | high[..., 2] >> 3).tobytes()
    rows565 = ((high[..., 0] >> 3) << 11 | (high[..., 1] >> 2) << 5 | high[..., 2] >> 3).tobytes()
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    return [
        ("bmp", plain, "", ""),
        ("bmp_32_bit", bmp(rows32, size=size, depth=32), "", "the fourth channel is dropped"),
        ("bmp_palette", bmp(rows8, size=size, depth=8, between=palette), "", ""),
        ("bmp_palette_4_bit", bmp(rows4, size=size, depth=4, between=palette[:64]), "", ""),
        ("bmp_1_bit", encode(picture.convert("1"), "BMP"), "", "black and white"),
        ("bmp_top_down", _overwritten(plain, 22, struct.pack("<i", -HEIGHT)), "", ""),
        ("bmp_trailing_garbage", plain + b"garbage" * 50, "", "what follows the end is ignored"),
        ("bmp_half", plain[: len(plain) // 2], "truncated", "zero-padded it is black where it was cut"),
        ("bmp_last_byte_missing", plain[:-1], "truncated", ""),
        ("bmp_16_bit", bmp(rows555, size=size, depth=16), "unsupported format", ""),
        ("bmp_565", bmp(rows565, size=size, depth=16, compression=BMP_BITFIELDS, between=masks),
         "unsupported format", "channel masks"),
        ("bmp_run_lengths", bmp(run_lengths + b"\0\1", size=size, depth=8, compression=BMP_RLE8,
         between=palette), "unsupported format", "compressed"),
    ]  # fmt: skip


def _others() -> Rows:
    picture = pattern(WIDTH, HEIGHT)
    palette, filler = picture.convert("P"), bytes(200)
    return [
        ("gif", encode(palette, "GIF"), "unsupported format: GIF", ""),
        ("gif_animated", encode(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
         "unsupported format: GIF", ""),
        ("tiff", encode(picture, "TIFF"), "unsupported format: TIFF", ""),
        ("ico", encode(picture, "ICO"), "unsupported format: ICO", ""),
        ("pdf", b"%PDF-1.7\n" + filler, "unsupported format: PDF", ""),
        ("jpeg_2000", b"\0\0\0\x0cjP  \r\n\x87\n" + filler, "unsupported format: JPEG 2000", ""),
        ("jpeg_xl", b"\xff\x0a" + filler, "unsupported format: JPEG XL", ""),
        ("heic", b"\0\0\0\x18ftypheic" + filler, "unsupported format: HEIC", ""),
        ("avif", b"\0\0\0\x20ftypavif" + filler, "unsupported format: HEIC, AVIF", ""),
        ("psd", b"8BPS\0\1" + filler, "unsupported format: PSD", ""),
        ("empty", b"", "the image is empty", "0 bytes"),
        ("one_byte", b"\xff", "not an image", ""),
        ("text", b"hello, this is no image at all" * 10, "not an image", ""),
        ("html", b"<!DOCTYPE html><title>404</title>" + filler, "not an image", "a failed download"),
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image", ""),
        ("zip", b"PK\3\4" + filler, "not an image", ""),
        ("zeros", bytes(5000), "not an image", ""),
        ("base64", base64.b64encode(encode(picture)), "not an image", "decode it first"),
        ("thin_strip", encode(pattern(1, 60_000)), "too many pixels",
         "1 x 60,000 grows to 100 x 6,000,000"),
        ("too_many_bytes", encode(picture) + bytes(Preprocessing().max_encoded_bytes), "too many bytes",
         "refused unread"),
    ]  # fmt: skip


def _scan_start(jpeg: bytes) -> int:
    return jpeg.index(b"\xff\xda")


def _overwritten(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


def _two_pictures() -> bytes:
    return _picture(image_format="MPO", save_all=True, append_images=[pattern(WIDTH, HEIGHT, phase=3)])


def _exif_with_thumbnail(thumbnail: bytes) -> bytes:
    """EXIF whose first directory is empty and whose second holds a JPEG."""
    entries = ((0x103, 3, 6), (0x201, 4, 14 + 2 + 3 * 12 + 4), (0x202, 4, len(thumbnail)))
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, value)
    return b"Exif\0\0II*\0" + struct.pack("<IHI", 8, 0, 14) + directory + bytes(4) + thumbnail

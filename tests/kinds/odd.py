"""Files as programs in the world write them, and as the way to us damages them: a part of `kind_rows`.

Metadata that is odd or broken does not matter; of the picture itself every byte does that can be checked.
"""

import struct
from typing import TYPE_CHECKING

from fruitstand.images.formats.png import chunk as png_chunk
from fruitstand.images.orientation import exif_block
from fruitstand.images.synthetic import encode, pattern
from tests.kinds.writers import BMP_BITFIELDS, PNG_GREY, PNG_RGB, bmp, png

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WIDTH, HEIGHT = 150, 120
SIZE = (WIDTH, HEIGHT)
_TURNED = exif_block(6)
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_XMP_TURNED = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)

Rows = list[tuple[str, bytes, str, str]]
"""Name, content, how its refusal begins (empty where it is answered), remark."""


def odd_jpegs() -> Rows:
    """Stray bytes, odd metadata, a missing end, markers inside the picture."""
    plain, other = encode(pattern(*SIZE)), encode(pattern(*SIZE, phase=3))
    start, rest = plain[:2], plain[20:]  # without JFIF
    middle = len(plain) - 600
    signed = _TURNED[:12] + struct.pack("<H", 9) + _TURNED[14:]
    turned, upright = _segment(0xE1, _EXIF + _TURNED), _segment(0xE1, _EXIF + exif_block(3))

    def with_marker(content: bytes) -> bytes:
        return plain[:middle] + content + plain[middle + len(content) :]

    return [
        ("jpeg_stray_bytes", plain[:20] + b"\0stray\xff\0bytes" + rest, "",
         "bytes between segments are skipped"),
        ("jpeg_stray_marker", start + b"\xff\xd0" + plain[2:], "", "as above"),
        ("jpeg_reserved_marker", start + b"\xff\x02\0\4xx" + plain[2:], "not an image", ""),
        ("jpeg_short_jfif", start + _segment(0xE0, b"JFIF\0") + rest, "", "broken metadata is ignored"),
        ("jpeg_exif_cut_short", start + b"\xff\xe1\0\2" + _EXIF + plain[2:], "", "as above"),
        ("jpeg_exif_signed_6", start + _segment(0xE1, _EXIF + signed) + plain[2:], "",
         "turned as its EXIF says"),
        ("jpeg_exif_twice", start + turned + upright + plain[2:], "", "the first counts"),
        ("jpeg_xmp_6", start + _segment(0xE1, _XMP + _XMP_TURNED) + plain[2:], "", "turned as its XMP says"),
        ("jpeg_end_missing_before_picture", plain[:-2] + other, "", "ends where the next picture begins"),
        ("jpeg_end_missing_before_trailer", plain[:-2] + b"trailer" * 20, "truncated",
         "only the end marker tells a whole picture from a cut one"),
        ("jpeg_reserved_marker_in_picture", with_marker(b"\xff\xf7"), "damaged", ""),
        ("jpeg_second_frame_in_picture", with_marker(b"\xff\xc0\0\x11"), "damaged", ""),
        ("jpeg_tables_in_picture", with_marker(b"\xff\xdb\0\x43\x0a"), "damaged",
         "with a number that does not exist"),
    ]  # fmt: skip


def inconsistent_jpegs() -> Rows:
    """Headers and tables that libjpeg gives up, and beside them what it only warns of."""
    plain, progressive = encode(pattern(*SIZE)), encode(pattern(*SIZE), progressive=True)
    tables, frame, scan = (plain.index(marker) for marker in (b"\xff\xc4", b"\xff\xc0", b"\xff\xda"))
    second_scan = progressive.index(b"\xff\xda", progressive.index(b"\xff\xda") + 2)
    second_scan_end = second_scan + 2 + progressive[second_scan + 3]

    def changed(position: int, new: bytes, content: bytes = plain) -> bytes:
        return content[:position] + new + content[position + len(new) :]

    overfull = bytes((1, 5, 0))  # of 1, 2 and 3 bits: after one code of one bit there are two of two bits
    unused = _segment(0xC4, b"\x13" + overfull.ljust(16, b"\0") + bytes(6))
    return [
        ("jpeg_huffman_overfull", changed(tables + 5, overfull), "damaged", "more codes than fit"),
        ("jpeg_huffman_overfull_unused", plain[:tables] + unused + plain[tables:], "",
         "no scan uses that table"),
        ("jpeg_huffman_dc_symbol", changed(tables + 21, b"\x20"), "damaged", "a difference of 32 bits"),
        ("jpeg_huffman_number", changed(tables + 4, b"\x24"), "damaged", ""),
        ("jpeg_without_quantization", changed(plain.index(b"\xff\xdb"), b"\0\0"), "damaged",
         "there are no standard ones"),
        ("jpeg_65501_wide", changed(frame + 5, struct.pack(">HH", 500, 65_501)), "too many pixels",
         "libjpeg stops at 65,500"),
        ("jpeg_frame_length", changed(frame + 9, b"\4"), "damaged", "four components announced, three there"),
        ("jpeg_sampling_zero", changed(frame + 11, b"\0"), "damaged", ""),
        ("jpeg_sampling_uneven", changed(frame + 11, b"\x31" + plain[frame + 12 : frame + 14] + b"\x21"),
         "damaged", "three to two"),
        ("jpeg_restart_interval_length", plain[:scan] + _segment(0xDD, b"\0") + plain[scan:], "damaged", ""),
        ("jpeg_extension_segment", plain[:frame] + _segment(0xF7, b"extension") + plain[frame:], "damaged",
         "decoders do not skip it"),
        ("jpeg_scan_unknown_component", changed(scan + 7, b"\x09"), "damaged", ""),
        ("jpeg_scan_repeated_component", changed(scan + 7, plain[scan + 5 : scan + 6]), "damaged", ""),
        ("jpeg_scan_unknown_table", changed(scan + 6, b"\x33"), "damaged", ""),
        ("jpeg_scan_range", changed(scan + 11, b"\x01\x05"), "", "has no meaning without progression"),
        ("jpeg_progressive_scan_range", changed(second_scan_end - 3, b"\x3f\x01", progressive), "damaged",
         "from the 63rd coefficient to the first"),
    ]  # fmt: skip


def odd_pngs() -> Rows:
    """Orientation told in other ways, animations, broken chunks."""
    import numpy as np

    rgb = np.asarray(pattern(*SIZE))
    frames = [pattern(*SIZE, phase=2), pattern(*SIZE, phase=4)]
    plain = _png(rgb)
    default_image = encode(pattern(*SIZE), "PNG", save_all=True, append_images=frames, default_image=True)
    control = struct.pack(">IIIIIHHBB", 0, *SIZE, 0, 0, 1, 10, 0, 0)
    no_frames = png_chunk(b"acTL", struct.pack(">II", 2, 0)) + png_chunk(b"fcTL", control)
    raw_profile = b"\nexif\n%8d\n%s\n" % (len(_EXIF + _TURNED), (_EXIF + _TURNED).hex().encode())
    header, end = plain[:33], plain[-12:]
    wrong_sum = struct.pack(">I", 5) + b"tEXta\0bcd" + bytes(4)
    half = len(plain) // 2
    first, second = plain[41:half], plain[half:-16]
    text = png_chunk(b"tEXt", b"a\0b")
    checkers = (np.indices((16, 16)).sum(axis=0) // 3 % 2).astype(np.uint8)
    return [
        ("png_exif_after_picture_6", plain[:-12] + png_chunk(b"eXIf", _TURNED) + end, "",
         "turned as its EXIF says"),
        ("png_exif_prefixed_6", _png(rgb, png_chunk(b"eXIf", _EXIF + _TURNED)), "", "as above"),
        ("png_exif_text_6", _png(rgb, png_chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile)), "",
         "as above"),
        ("png_xmp_6", _png(rgb, png_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + _XMP_TURNED)), "",
         "turned as its XMP says"),
        ("png_animated_default_image", default_image, "", "the default image"),
        ("png_animated_without_frames", header + no_frames + plain[33:], "", "the default image"),
        ("png_text_checksum", header + wrong_sum + plain[33:], "", "broken metadata is ignored"),
        *((f"png_empty_{kind.lower()}", _png(rgb, png_chunk(kind.encode(), b"")), "", "as above")
          for kind in ("cHRM", "pHYs", "sRGB", "gAMA", "iCCP")),
        ("png_interlaced_1_bit_16x16", png(checkers, colour=PNG_GREY, depth=1, interlaced=True), "", ""),
        ("png_unknown_filter", _with_filter(rgb, 9), "damaged", "only a decoder finds out"),
        ("png_data_without_end", header + png_chunk(b"IDAT", plain[41:-20]) + end, "damaged",
         "only a decoder finds out"),
        ("png_palette_empty", _png(rgb, png_chunk(b"PLTE", b"")), "", "a mere suggestion in true colour"),
        ("png_picture_in_two_places",
         header + png_chunk(b"IDAT", first) + text + png_chunk(b"IDAT", second) + end, "damaged", ""),
    ]  # fmt: skip


def odd_webps() -> Rows:
    """A tiny one, chunks of odd size, flags without a chunk, orientation told in other ways."""
    picture = pattern(*SIZE)
    extended = encode(picture, "WEBP", exif=_TURNED)
    still = extended[30 : -8 - len(_TURNED)]
    animated_flag = bytes((extended[20] | 2,))
    return [
        ("webp_tiny", encode(pattern(1, 1), "WEBP", lossless=True), "", "shorter than 32 bytes"),
        ("webp_exif_odd_size_6", _webp(8, still, _chunk(b"EXIF", _TURNED + b"\0")[:-1]), "",
         "turned as its EXIF says"),
        ("webp_odd_chunk_before_exif_6", _webp(0x28, _chunk(b"ICCP", bytes(301)), still,
         _chunk(b"EXIF", _TURNED)), "", "as above"),
        ("webp_exif_prefixed_6", _webp(8, still, _chunk(b"EXIF", _EXIF + _TURNED)), "", "as above"),
        ("webp_xmp_6", _webp(4, still, _chunk(b"XMP ", _XMP_TURNED)), "", "turned as its XMP says"),
        ("webp_exif_not_there", _webp(8, still), "", "announced, but missing"),
        ("webp_chunks_after_picture", _webp(0, still, bytes(800), _chunk(b"ANMF", b"")), "",
         "what follows the picture is ignored"),
        ("webp_without_picture", _webp(8, _chunk(b"EXIF", _TURNED)), "damaged", ""),
        ("webp_animated_without_frames", extended[:20] + animated_flag + extended[21:], "damaged", ""),
    ]  # fmt: skip


def odd_bmps() -> Rows:
    """Newer headers with channel masks, OS/2's, palettes that are short."""
    import numpy as np

    rgb = np.asarray(pattern(*SIZE))[::-1]
    opaque = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    bgra, rgba = np.dstack([rgb[..., ::-1], opaque]).tobytes(), np.dstack([rgb, opaque]).tobytes()
    rows24 = np.pad(rgb[..., ::-1].reshape(HEIGHT, -1), ((0, 0), (0, -3 * WIDTH % 4))).tobytes()
    rows8 = np.pad(rgb[..., 1] // 16, ((0, 0), (0, -WIDTH % 4))).tobytes()
    palette = b"".join(bytes([16 * i, 255 - 16 * i, 8 * i, 0]) for i in range(16))
    plain_masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    rgba_masks = struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    own_masks = struct.pack("<IIII", 0x3FF00000, 0xFFC00, 0x3FF, 0)
    os2 = b"BM" + struct.pack("<IHHIIHHHH", 26 + len(rows24), 0, 0, 26, 12, *SIZE, 1, 24) + rows24
    long_header = bmp(rows24, size=SIZE, depth=24, between=bytes(26))

    def masked(rows: bytes, masks: bytes, header_bytes: int) -> bytes:
        content = bmp(rows, size=SIZE, depth=32, compression=BMP_BITFIELDS,
                      between=masks.ljust(header_bytes - 40, b"\0"))  # fmt: skip
        return content[:14] + struct.pack("<I", header_bytes) + content[18:]

    return [
        ("bmp_masks", bmp(bgra, size=SIZE, depth=32, compression=BMP_BITFIELDS, between=plain_masks[:12]), "",
         "32 bits, each channel its byte"),
        ("bmp_v3_masks", masked(bgra, plain_masks, 56), "", "as above"),
        ("bmp_v4_masks", masked(bgra, plain_masks, 108), "", "as above"),
        ("bmp_v5_masks", masked(bgra, plain_masks, 124), "", "as above"),
        ("bmp_v5_masks_rgba", masked(rgba, rgba_masks, 124), "", "as above"),
        ("bmp_own_masks", masked(bgra, own_masks, 124), "unsupported format", "ten bits a channel"),
        ("bmp_short_palette", bmp(rows8, size=SIZE, depth=8, between=palette), "",
         "16 colours where 256 are announced"),
        ("bmp_os2", os2, "", "OS/2's header"),
        ("bmp_header_66", long_header[:14] + struct.pack("<I", 66) + long_header[18:], "damaged",
         "no version has such a header"),
    ]  # fmt: skip


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _png(rgb: "npt.NDArray[np.uint8]", extra: bytes = b"") -> bytes:
    return png(rgb, colour=PNG_RGB, extra=extra)


def _webp(flags: int, *chunks: bytes) -> bytes:
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in SIZE)
    body = b"WEBP" + _chunk(b"VP8X", bytes((flags, 0, 0, 0)) + sides) + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _with_filter(rgb: "npt.NDArray[np.uint8]", number: int) -> bytes:
    import zlib

    rows = b"".join(
        bytes((number if at == HEIGHT // 2 else 0,)) + row.tobytes() for at, row in enumerate(rgb)
    )
    return _png(rgb)[:33] + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")

import struct

import pytest

from fruitstand.images.orientation import exif_block, turn

XMP_ATTRIBUTE, XMP_ELEMENT = b'<a tiff:Orientation="8"/>', b"<tiff:Orientation>5</tiff:Orientation>"


def block(order: str, kind: int, value: bytes) -> bytes:
    """EXIF with two tags, the orientation second."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    model = struct.pack(order + "HHII", 0x0110, 2, 4, 0)
    return (
        mark + struct.pack(order + "IH", 8, 2) + model + struct.pack(order + "HHI", 0x0112, kind, 1) + value
    )


@pytest.mark.parametrize(
    ("exif", "xmp", "expected"),
    [
        pytest.param(b"", b"", 1, id="nothing"),
        pytest.param(exif_block(7), b"", 7, id="our_own"),
        pytest.param(b"Exif\0\0" * 2 + exif_block(7), b"", 7, id="identifier_twice"),
        pytest.param(block("<", 3, b"\6\0\0\0"), b"", 6, id="short_little_endian"),
        pytest.param(block(">", 3, b"\0\6\0\0"), b"", 6, id="short_big_endian"),
        pytest.param(block(">", 4, b"\0\0\0\6"), b"", 6, id="long"),
        pytest.param(block("<", 9, b"\6\0\0\0"), b"", 6, id="signed_long"),
        pytest.param(block("<", 5, b"\6\0\0\0"), XMP_ATTRIBUTE, 1, id="a_fraction_is_unknown"),
        pytest.param(exif_block(9), XMP_ATTRIBUTE, 1, id="nine_is_unknown"),
        pytest.param(exif_block(1), XMP_ATTRIBUTE, 1, id="exif_counts_before_xmp"),
        pytest.param(b"II*\0\xff\xff\xff\xff", XMP_ATTRIBUTE, 8, id="broken_exif"),
        pytest.param(b"junk", XMP_ELEMENT, 5, id="no_exif"),
        pytest.param(exif_block(6)[:18], b"", 1, id="cut_short"),
    ],
)
def test_the_turn_is_read_as_pillow_reads_it(exif: bytes, xmp: bytes, expected: int) -> None:
    """EXIF first, whatever its byte order and type; XMP where EXIF says nothing."""
    assert turn(exif, xmp) == expected

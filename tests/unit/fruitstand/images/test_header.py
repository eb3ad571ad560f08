import pytest

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.header import read_header
from fruitstand.images.synthetic import encode, pattern, supported_images
from tests.images import refused

IN_THE_HEADER = (
    "empty", "one_byte", "text", "gif", "tiff", "psd", "jpeg_header_only", "jpeg_magic_only", "jpeg_12_bit",
    "jpeg_lossless", "jpeg_two_channels", "jpeg_reserved_marker", "png_bomb", "thin_strip", "too_many_bytes",
)  # fmt: skip
"""Kinds that need no look behind the header."""


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        pytest.param("JPEG", {}, id="jpeg"),
        pytest.param("JPEG", {"progressive": True}, id="jpeg_progressive"),
        pytest.param("PNG", {}, id="png"),
        pytest.param("WEBP", {}, id="webp_lossy"),
        pytest.param("WEBP", {"lossless": True}, id="webp_lossless"),
        pytest.param("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}, id="webp_extended"),
        pytest.param("BMP", {}, id="bmp"),
    ],
)
def test_the_size_is_read_from_the_header(image_format: str, options: dict) -> None:
    """Format and size are those the file was made with."""
    header = read_header(encode(pattern(123, 45), image_format, **options), Preprocessing())
    assert (header.format.upper(), header.width, header.height) == (image_format, 123, 45)


def test_every_supported_image_passes() -> None:
    """No kind of image that the decoders take is refused by its header, zero-padded or not."""
    for content in supported_images().values():
        padded = memoryview(content + bytes(777))
        assert read_header(content, Preprocessing()) == read_header(padded, Preprocessing())


@pytest.mark.parametrize("name", IN_THE_HEADER)
def test_a_refusal_names_its_reason(name: str) -> None:
    """Whoever sent the file learns what is wrong with it."""
    content, reason = refused()[name]
    with pytest.raises(ImageRejected, match=reason):
        read_header(content, Preprocessing())


def test_limits_on_bytes_and_pixels_are_checked_before_any_decode() -> None:
    """Both limits come from the contract."""
    image = encode(pattern(123, 45))
    with pytest.raises(ImageRejected, match="too many bytes"):
        read_header(image, Preprocessing(max_encoded_bytes=len(image) - 1))
    with pytest.raises(ImageRejected, match="too many pixels: 123 x 45"):
        read_header(image, Preprocessing(max_pixels=123 * 45 - 1))


def test_a_thin_picture_that_the_resize_would_blow_up_is_refused() -> None:
    """One pixel by 60,000 is small until its short side is scaled to 100."""
    with pytest.raises(ImageRejected, match="before and after the resize"):
        read_header(encode(pattern(1, 60_000)), Preprocessing())


def test_a_header_of_endless_markers_is_refused_quickly() -> None:
    """A megabyte of fill bytes costs no more than a thousand steps."""
    with pytest.raises(ImageRejected, match="markers"):
        read_header(b"\xff\xd8" + b"\xff" * 2**20, Preprocessing())


def test_any_cut_of_a_header_is_refused_and_never_crashes() -> None:
    """Every prefix of a file gives a header or a reason."""
    for image in (encode(pattern(40, 30), f) for f in ("JPEG", "PNG", "WEBP", "BMP")):
        for length in range(min(len(image), 700)):
            try:
                read_header(image[:length], Preprocessing())
            except ImageRejected as exc:
                assert str(exc)  # noqa: PT017 - both outcomes are right, a crash is not

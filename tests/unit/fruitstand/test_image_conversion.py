import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.conversion import CONVERTED_SUFFIXES, as_supported
from fruitstand.images.header import read_header
from fruitstand.images.reference_decode import decode_reference
from fruitstand.images.synthetic import encode, pattern
from fruitstand_client.images import read_image
from tests.both_clients import Classify, awaiting, blocking
from tests.model_server import model_server
from training.data.class_folders import find_images
from training.data.copy_images import copy_images
from training.data.file_tree import open_tree
from training.data.painter import paint_dataset

PREPROCESSING = Preprocessing()
PICTURE = pattern(64, 48)
ORIENTATION = 0x0112
GREY_16 = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (48, 64)).astype(np.uint16))


def saved(picture: Image.Image, image_format: str, **settings: object) -> bytes:
    """A file of that format."""
    if image_format == "HEIF":
        pytest.importorskip("pillow_heif", reason="pillow-heif is not installed").register_heif_opener()
    if image_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    file = io.BytesIO()
    picture.save(file, image_format, **settings)
    return file.getvalue()


def converted(content: bytes, preprocessing: Preprocessing = PREPROCESSING) -> tuple[Image.Image, str]:
    """The PNG as Pillow reads it, and what it was; the server would take it."""
    with pytest.raises(ImageRejected, match="unsupported format"):
        read_header(content, preprocessing)
    made = as_supported(content, preprocessing)
    assert made.converted_from is not None
    assert read_header(made.content, preprocessing).format == "PNG"
    return Image.open(io.BytesIO(made.content)), made.converted_from


@pytest.mark.parametrize(
    ("image_format", "name", "settings"),
    [
        pytest.param("HEIF", "HEIC", {"quality": -1, "chroma": 444}, id="heic"),
        pytest.param("AVIF", "AVIF", {"quality": 100, "subsampling": "4:4:4"}, id="avif"),
        pytest.param("TIFF", "TIFF", {"compression": "tiff_lzw"}, id="tiff"),
        pytest.param("JPEG2000", "JPEG 2000", {"irreversible": False}, id="jpeg_2000"),
        pytest.param("ICO", "ICO", {"sizes": [(64, 48)]}, id="ico"),
    ],
)
def test_formats_that_the_server_does_not_read_become_png(
    image_format: str, name: str, settings: dict[str, object]
) -> None:
    """With the pixels that Pillow reads from the file, which are those it was made of."""
    content = saved(PICTURE, image_format, **settings)
    picture, converted_from = converted(content)
    assert converted_from == name
    with Image.open(io.BytesIO(content)) as original:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(original.convert("RGB")))
    difference = np.abs(np.asarray(picture).astype(int) - np.asarray(PICTURE)).mean()
    assert difference <= 2, f"the file itself differs by {difference}"


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        pytest.param(lambda: saved(GREY_16, "TIFF"), "I;16", id="grey_16_bit"),
        pytest.param(lambda: saved(PICTURE.convert("1"), "TIFF", compression="group4"), "1", id="fax"),
        pytest.param(lambda: saved(PICTURE.convert("L"), "TIFF"), "L", id="grey"),
        pytest.param(lambda: saved(PICTURE.convert("P"), "GIF"), "P", id="palette"),
        pytest.param(lambda: saved(PICTURE.convert("RGBA"), "TIFF"), "RGB", id="alpha"),
        pytest.param(lambda: saved(PICTURE.convert("CMYK"), "TIFF"), "RGB", id="cmyk"),
    ],
)
def test_no_value_of_a_pixel_changes(make: Callable[[], bytes], mode: str) -> None:
    """PNG has the same depth; alpha is dropped, as the server drops it."""
    content = make()
    picture, _ = converted(content)
    assert picture.mode == mode
    with Image.open(io.BytesIO(content)) as original:
        expected = original.convert("RGB") if mode == "RGB" else original
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize("image_format", ["HEIF", "AVIF", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "transposed"),
    [
        pytest.param(3, Image.Transpose.ROTATE_180, id="3"),
        pytest.param(6, Image.Transpose.ROTATE_270, id="6"),
        pytest.param(8, Image.Transpose.ROTATE_90, id="8"),
    ],
)
def test_a_picture_is_turned_upright_once(
    image_format: str, orientation: int, transposed: Image.Transpose
) -> None:
    """As the file says; the PNG says nothing."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    quality = {} if image_format == "TIFF" else {"quality": 95}
    picture, _ = converted(saved(PICTURE, image_format, exif=exif.tobytes(), **quality))
    expected = np.asarray(PICTURE.transpose(transposed)).astype(int)
    assert np.asarray(picture).shape == expected.shape
    assert np.abs(np.asarray(picture) - expected).mean() < 6
    assert not picture.getexif()


@pytest.mark.parametrize("image_format", ["GIF", "TIFF"])
def test_of_several_frames_the_first_is_taken(image_format: str) -> None:
    """Of an animation and of several pages."""
    other = Image.new("RGB", (64, 48), "white")
    content = saved(PICTURE.quantize(), image_format, save_all=True, append_images=[other.quantize()])
    with Image.open(io.BytesIO(content)) as original:
        assert original.n_frames == 2
        expected = np.asarray(original.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(converted(content)[0].convert("RGB")), expected)


def too_large_icon(side: int) -> bytes:
    """An icon that says 64 x 48, with a PNG inside that says `side` x `side`."""
    icon = bytearray(saved(PICTURE, "ICO", sizes=[(64, 48)]))
    at = icon.index(b"IHDR")
    icon[at + 4 : at + 12] = side.to_bytes(4, "big") * 2
    icon[at + 17 : at + 21] = zlib.crc32(icon[at : at + 17]).to_bytes(4, "big")
    return bytes(icon)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: saved(Image.new("1", (9000, 6000)), "TIFF", compression="group4"), id="tiff"),
        pytest.param(lambda: saved(Image.new("L", (9000, 6000)), "GIF"), id="gif"),
        pytest.param(lambda: saved(Image.new("1", (60_000, 1)), "TIFF"), id="strip"),
        pytest.param(lambda: too_large_icon(8_000), id="icon"),
        pytest.param(lambda: too_large_icon(20_000), id="larger_icon"),
    ],
)
def test_the_limit_of_pixels_holds_before_anything_is_decoded(
    make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header says how many there are."""
    content = make()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageRejected, match="too many pixels"):
        converted(content)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        pytest.param("RGB", "RGB", id="colour"),
        pytest.param("P", "RGB", id="palette"),
        pytest.param("I;16", "I;16", id="grey_16_bit"),
        pytest.param("1", "L", id="black_and_white"),
    ],
)
def test_what_would_be_too_long_as_png_is_reduced_and_says_so(mode: str, expected: str) -> None:
    """Pixels are averaged by a whole factor."""
    ramp = np.add.outer(np.arange(300), np.arange(400)) // 7 % 256
    grey = (ramp + np.random.default_rng(0).integers(0, 3, ramp.shape)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey)
    picture = picture if mode == "I;16" else picture.convert(mode)
    deflated = ("TIFF", {"compression": "tiff_adobe_deflate"})
    lossy = ("JPEG2000", {"irreversible": True, "quality_layers": [8]})
    image_format, settings = lossy if mode == "I;16" else deflated
    content = saved(picture, image_format, **settings)
    exact, _ = converted(content)
    length = len(as_supported(content, PREPROCESSING).content)
    assert len(content) < length, "the file itself is short enough"
    reduced, converted_from = converted(content, Preprocessing(max_encoded_bytes=length - 1))
    assert converted_from.endswith(", reduced to 1/2")
    assert (reduced.size, reduced.mode) == ((200, 150), expected)
    whole = np.asarray(exact.convert(expected)).astype(float)
    means = whole.reshape(150, 2, 200, 2, -1).mean((1, 3)).squeeze()
    assert np.abs(np.asarray(reduced) - means).max() <= 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(lambda: saved(PICTURE, "TIFF")[:-3000], "damaged or truncated", id="cut_tiff"),
        pytest.param(lambda: saved(PICTURE, "GIF")[:-500], "damaged or truncated", id="cut_gif"),
        pytest.param(lambda: saved(PICTURE.convert("F"), "TIFF"), "pixels of mode F", id="float"),
        pytest.param(lambda: b"%PDF-1.7 " + bytes(64), "unsupported format: PDF", id="pdf"),
        pytest.param(lambda: b"II*\0" + bytes(64), "damaged|unsupported format: TIFF", id="empty_tiff"),
    ],
)
def test_what_cannot_be_converted_has_its_reason(content: Callable[[], bytes], words: str) -> None:
    """The server's own, where Pillow does not read the file either."""
    with pytest.raises(ImageRejected, match=words):
        converted(content())


@pytest.mark.parametrize("classify", [blocking, awaiting])
def test_both_clients_convert_and_say_so(classify: Classify) -> None:
    """The server gets PNG; the other images of the request are as they were."""
    jpeg, gif = encode(PICTURE), saved(PICTURE, "GIF")
    with model_server() as server:
        first, second = classify(server.url, [jpeg, gif])
        (received,) = server.received
    assert (first.converted_from, second.converted_from) == (None, "GIF")
    assert [second.label, second.error] == [str(len(read_image(gif).content)), None]
    assert second.to_dict()["converted_from"] == "GIF"
    assert received.images[1].startswith(b"\x89PNG")


def test_data_prepare_converts_what_the_client_converts(tmp_path: Path) -> None:
    """To the same file; the others are copied byte for byte."""
    tree = paint_dataset(tmp_path / "tree", num_classes=2, images_per_class=8, seed=1)
    jpeg = min(tree.rglob("*.jpg"))
    content = saved(Image.open(jpeg), "TIFF")
    tiff = jpeg.with_suffix(".tiff")
    tiff.write_bytes(content)
    with open_tree(tree) as listed:
        found = find_images(listed.listing())
    rows, _, skipped, formats = copy_images(tree, found, tmp_path / "out")
    assert (skipped, formats) == ([], {"TIFF": 1})
    (row,) = [row for row in rows if row.path.endswith(".tiff.png")]
    written = (tmp_path / "out" / row.path).read_bytes()
    assert written == read_image(content).content
    assert decode_reference(written, PREPROCESSING).shape == (100, 100, 3)


def test_files_of_these_formats_are_found_in_folders() -> None:
    """By their names."""
    assert {".heic", ".avif", ".tiff", ".gif", ".jp2", ".ico"} <= CONVERTED_SUFFIXES

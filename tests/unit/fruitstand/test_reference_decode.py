import io

import numpy as np
import pytest

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.reference_decode import decode_inspected, decode_reference
from fruitstand.images.structure import inspect_image
from fruitstand.images.synthetic import encode, pattern, photograph, with_orientation
from serving.attest.kinds import ImageKind, image_kinds
from tests.images import refused

PILLOW_IS_STRICTER = {
    "jpeg_short_jfif", "jpeg_end_missing_before_picture", "png_text_checksum", "png_empty_chrm",
    "png_empty_phys", "png_empty_srgb", "png_empty_gama", "png_empty_iccp", "webp_exif_odd_size_6",
    "webp_chunks_after_picture",
}  # fmt: skip
"""Its reader refuses the file for its metadata, though the picture is whole."""


def test_an_image_of_the_input_size_is_not_resampled() -> None:
    """Fruits-360 images are 100x100 already: their pixels pass unchanged."""
    image = pattern(100, 100)
    np.testing.assert_array_equal(decode_reference(encode(image, "PNG"), Preprocessing()), np.asarray(image))


def test_exif_orientation_is_applied() -> None:
    """A picture turned by its EXIF comes out upright: the crop of a turned one has other pixels."""
    upright, turned = (
        # 160 pixels leave 30 on either side of the crop, so that half a turn crops the same pixels.
        decode_reference(with_orientation(n, (160, 100)), Preprocessing()).astype(int)
        for n in (1, 3)
    )
    assert np.abs(upright[::-1, ::-1] - turned).mean() < 1


def test_sixteen_bits_become_eight_by_scaling() -> None:
    """Half of full white is half white, not clipped to white."""
    from PIL import Image

    half = Image.fromarray(np.full((100, 100), 0x8000, np.uint16))
    assert decode_reference(encode(half, "PNG"), Preprocessing()).mean() == 0x80


@pytest.mark.parametrize("name", refused())
def test_a_refused_file_has_its_reason(name: str) -> None:
    """The same verdicts as in serving, with no path in them."""
    content, reason = refused()[name]
    with pytest.raises(ImageRejected, match=reason):
        decode_reference(content, Preprocessing())


@pytest.mark.parametrize(
    "kind", [kind for kind in image_kinds() if kind.is_accepted], ids=lambda kind: kind.name
)
def test_an_answered_file_is_seen_as_anyone_sees_it(kind: ImageKind) -> None:
    """Pillow reads the file itself, turned as its metadata says, as the same picture."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(kind.content)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except Exception:  # Pillow raises a dozen kinds
        assert kind.name in PILLOW_IS_STRICTER
        return
    assert kind.name not in PILLOW_IS_STRICTER
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image = image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
    preprocessing = Preprocessing()
    height, width = preprocessing.input_size
    size = preprocessing.resized_size(*image.size)
    left, top = (size[0] - width + 1) // 2, (size[1] - height + 1) // 2
    expected = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    got = decode_reference(kind.content, preprocessing)
    assert np.abs(got - np.asarray(expected).astype(int)).mean() <= 2


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "crop_pct"), [pytest.param(224, 0.875, id="224"), pytest.param(160, 1.0, id="160_whole")]
)
def test_the_pixels_are_those_of_timms_evaluation(
    size: int, crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    """A model of the hub sees what it was evaluated with, within 0.2 of 255; no odd pixel is cropped here."""
    timm_data = pytest.importorskip("timm.data")
    picture = photograph(1000, 800)
    options = {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
    transform = timm_data.create_transform(size, mean=(0, 0, 0), std=(1, 1, 1), **options)
    expected = transform(picture).permute(1, 2, 0).numpy() * 255
    got = decode_reference(encode(picture, "PNG"), Preprocessing(input_size=(size, size), **options))
    assert np.abs(got - expected).mean() < 0.2


@pytest.mark.parametrize(
    "preprocessing",
    [
        pytest.param(Preprocessing(), id="100"),
        pytest.param(Preprocessing(interpolation="bicubic", input_size=(64, 96)), id="bicubic"),
        pytest.param(Preprocessing(input_size=(112, 112), crop_mode="squash", crop_pct=0.875), id="squash"),
    ],
)
def test_a_reduced_decode_gives_the_pixels_of_the_full_one(
    preprocessing: Preprocessing, large_jpegs: dict[str, bytes]
) -> None:
    """Any size, colour space and orientation: the picture keeps its place to a fraction of a pixel."""
    differences = {}
    for name, content in large_jpegs.items():
        inspected = inspect_image(content, preprocessing)
        assert preprocessing.jpeg_scale(inspected.header.width, inspected.header.height) > 1
        full, reduced = (
            decode_inspected(inspected, preprocessing, reduced=one).astype(int) for one in (False, True)
        )
        assert (full != reduced).any()
        differences[name] = np.abs(full - reduced).mean()
    assert max(differences.values()) < 0.35, differences

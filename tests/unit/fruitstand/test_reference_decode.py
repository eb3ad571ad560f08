import numpy as np
import pytest

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.reference_decode import decode_reference
from fruitstand.sample_images import encode, pattern, with_orientation
from tests.images import refused


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

import re

import numpy as np
import pytest
from PIL import Image

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.jpeg import MAX_STRAY_BYTES, MAX_WALKED_SCAN_BYTES
from fruitstand.images.structure import inspect_image
from fruitstand.images.synthetic import encode


@pytest.fixture(scope="module")
def large() -> bytes:
    """A sequential JPEG whose data is longer than what is walked, 600 KiB of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    content = encode(Image.fromarray(noise), quality=95, subsampling=0)
    assert len(content) > 2 * MAX_WALKED_SCAN_BYTES
    return content


def test_a_marker_inside_the_walked_part_is_found_and_an_end_behind_it_too(large: bytes) -> None:
    """Damage early in the picture refuses it; a missing end is noticed however long the file is."""
    inspect_image(large, Preprocessing())
    damaged = large[:100_000] + b"\xff\xf7" + large[100_002:]
    with pytest.raises(ImageRejected, match="does not belong there"):
        inspect_image(damaged, Preprocessing())
    with pytest.raises(ImageRejected, match="truncated"):
        inspect_image(large[:-2], Preprocessing())


@pytest.mark.parametrize("shift", [-2, -1, 0, 1])
def test_an_end_marker_at_the_limit_of_the_walk_is_found(large: bytes, shift: int) -> None:
    """Also where one of its two bytes lies before the limit and the other behind it."""
    data = next(re.finditer(rb"\xff\xda", large)).start() + 14
    end = data + MAX_WALKED_SCAN_BYTES + shift
    cut = large[: end - 1] + b"\0" + b"\xff\xd9"
    inspect_image(cut, Preprocessing())


def test_stray_bytes_have_a_limit(large: bytes) -> None:
    """Programs leave a few between two segments; a file full of them is no image."""
    few, many = bytes(MAX_STRAY_BYTES - 10), bytes(MAX_STRAY_BYTES + 10)
    assert len(inspect_image(large[:20] + few + large[20:], Preprocessing()).content) == len(large)
    with pytest.raises(ImageRejected, match="broken JPEG markers"):
        inspect_image(large[:20] + many + large[20:], Preprocessing())

import io
import random
import re

import numpy as np
import pytest
from PIL import Image

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.formats.jpeg import MAX_STRAY_BYTES, MAX_WALKED_SCAN_BYTES
from fruitstand.images.structure import inspect_image
from fruitstand.images.synthetic import encode, pattern
from serving.attest.kinds import image_kinds

NUM_MUTATED = 1500


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


def test_libjpeg_decodes_what_is_accepted_however_bytes_were_changed() -> None:
    """One file that libjpeg gives up fails a whole batch of NVIDIA's decoder, so none may pass."""
    kinds = [kind.content for kind in image_kinds() if kind.is_accepted and kind.name.startswith("jpeg")]
    choose = random.Random(0)
    num_accepted = num_refused = 0
    for _ in range(NUM_MUTATED):
        mutated = bytearray(choose.choice(kinds))
        for _ in range(choose.randint(1, 6)):
            end = min(len(mutated), choose.choice((64, 700, 10_000)))
            mutated[choose.randrange(end)] = choose.randrange(256)
        try:
            content = inspect_image(bytes(mutated), Preprocessing()).content
        except ImageRejected:
            num_refused += 1
            continue
        num_accepted += 1
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height < 10**6:
                image.load()
    assert num_accepted > NUM_MUTATED // 4
    assert num_refused > NUM_MUTATED // 4


def test_a_table_that_is_defined_again_counts_as_it_was_last_defined() -> None:
    """A broken one that is replaced before the picture does no harm; a good one that is broken later does."""
    plain = encode(pattern(40, 30))
    start, end = plain.index(b"\xff\xc4"), plain.index(b"\xff\xc4") + 2 + 31
    table = plain[start:end]
    broken = table[:5] + bytes((1, 5, 0)) + table[8:]
    inspect_image(plain[:start] + broken + plain[start:], Preprocessing())
    for content in (plain[:end] + broken + plain[end:], plain[:start] + broken + plain[end:]):
        with pytest.raises(ImageRejected, match="broken JPEG tables"):
            inspect_image(content, Preprocessing())


@pytest.mark.parametrize(
    "conditioning",
    [
        pytest.param(b"\x20\x10", id="number"),
        pytest.param(b"\x00\x01", id="lower_bound_above_upper"),
        pytest.param(b"\x00", id="length"),
    ],
)
def test_arithmetic_coding_with_conditioning_that_does_not_exist_is_refused(conditioning: bytes) -> None:
    """As by libjpeg, which gives it up."""
    plain = next(kind.content for kind in image_kinds() if kind.name == "jpeg_arithmetic")
    at = plain.index(b"\xff\xcc")
    segment = b"\xff\xcc" + (2 + len(conditioning)).to_bytes(2, "big") + conditioning
    with pytest.raises(ImageRejected, match="broken JPEG tables"):
        inspect_image(plain[:at] + segment + plain[at:], Preprocessing())

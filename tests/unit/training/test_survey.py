import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fruitstand.images.synthetic import encode, pattern
from fruitstand.manifest import PreparedData
from training.data.check.survey import THUMBNAIL_SIZE, difference_hashes, survey


@pytest.fixture
def copy(prepared: PreparedData, tmp_path: Path) -> PreparedData:
    """The prepared folder, to break."""
    shutil.copytree(prepared.directory, tmp_path / "copy")
    return dataclasses.replace(prepared, directory=tmp_path / "copy")


def test_every_image_is_looked_at(prepared: PreparedData) -> None:
    """Painted images are RGB JPEGs of 100 x 100, and sound."""
    seen = survey(prepared)
    assert seen.problems == {}
    assert {(look.format, look.mode, look.width, look.height) for look in seen.looks if look} == {
        ("JPEG", "RGB", 100, 100)
    }
    assert len(seen.looks) == len(prepared.rows)
    assert seen.thumbnails.min(axis=(1, 2, 3)).max() < 250, "each shows something on its white ground"


def test_missing_and_changed_files_are_named(copy: PreparedData) -> None:
    """The others are looked at all the same."""
    (copy.directory / copy.rows[3].path).unlink()
    (copy.directory / copy.rows[5].path).write_bytes(encode(pattern(100, 100)))
    seen = survey(copy)
    assert seen.problems == {
        3: "cannot be read: No such file or directory",
        5: "changed since it was prepared",
    }
    assert [index for index, look in enumerate(seen.looks) if look is None] == [3, 5]


def test_a_hash_bit_says_that_the_right_neighbour_is_brighter() -> None:
    """Eight bits a line, the top left one highest; an even picture has none."""
    thumbnails = np.zeros((3, 8, 9, 3), np.uint8)
    thumbnails[1, 0, 1:] = 50  # one step in the first line
    thumbnails[2, :, :, 1] = np.arange(9) * 20  # brighter all the way, in green alone
    assert difference_hashes(thumbnails).tolist() == [0, 1 << 63, (1 << 64) - 1]


def test_the_hash_survives_another_encoding_and_not_another_picture() -> None:
    """What makes it fit to find copies."""
    picture = pattern(100, 100)
    again = Image.open(io.BytesIO(encode(picture, quality=40)))
    reduced = [
        np.asarray(one.convert("RGB").resize(THUMBNAIL_SIZE, Image.Resampling.BOX))
        for one in (picture, again, pattern(100, 100, phase=2))
    ]
    original, encoded_again, other = (int(value) for value in difference_hashes(np.stack(reduced)))
    assert (original ^ encoded_again).bit_count() <= 2
    assert (original ^ other).bit_count() > 12

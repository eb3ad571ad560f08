from pathlib import Path

import pytest

from fruitstand.errors import ArtefactError
from fruitstand.labels import labels_sha256, read_labels, write_labels


def test_labels_keep_their_order_and_spelling(tmp_path: Path) -> None:
    """Names with spaces, colons and accents come back as they were."""
    labels = ["Pêche", "Apple 10", "Apple: red", "Pear, green", "10", "2", "kept blank ", "x" * 200]
    write_labels(tmp_path / "labels.txt", labels)
    assert read_labels(tmp_path / "labels.txt") == labels


def test_the_order_of_labels_is_part_of_their_identity() -> None:
    """Two models with the same classes in another order are not the same."""
    assert labels_sha256(["a", "b"]) != labels_sha256(["b", "a"])


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(["only"], id="one"),
        pytest.param(["a", "a"], id="twice"),
        pytest.param(["a", " "], id="blank"),
        pytest.param(["a", "b\nc"], id="line_break"),
        pytest.param(["a", "b\r"], id="line_break_at_the_end"),
    ],
)
def test_labels_that_a_file_cannot_carry_are_refused(labels: list[str], tmp_path: Path) -> None:
    """Nothing is written for them."""
    with pytest.raises(ArtefactError, match="labels"):
        write_labels(tmp_path / "labels.txt", labels)
    assert not list(tmp_path.iterdir())

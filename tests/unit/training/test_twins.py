from fruitstand.manifest import ManifestRow
from training.data.twins import without_twins


def _row(variety: str, digest: str, split: str, label: str = "Apple") -> ManifestRow:
    return ManifestRow(f"{split}/{variety}/{digest}", digest, label, variety, "r0", 0, split)


def test_the_twin_in_test_stays_and_the_one_in_training_goes() -> None:
    """The 3-body set has two such pairs: one fruit, learned under one name and tested under another."""
    rows = [_row("Apple 1", "a", "train"), _row("Apple 1", "b", "train"), _row("Apple 9", "a", "test")]
    rows += [_row("Apple 9", "b", "test"), _row("Apple 5", "c", "train")]
    kept, twins = without_twins(rows)
    assert {row.object for row in kept} == {"Apple 5", "Apple 9"}
    assert twins == [{"object": "Apple 1", "label": "Apple", "same_as": "Apple 9", "num_images": 2}]


def test_one_shared_file_makes_no_twins() -> None:
    """Only an object that stands elsewhere completely is dropped."""
    rows = [_row("Apple 1", "a", "train"), _row("Apple 1", "b", "train"), _row("Apple 2", "a", "train")]
    rows += [_row("Apple 2", "c", "test")]
    assert without_twins(rows) == (rows, [])

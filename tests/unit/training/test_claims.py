from pathlib import Path

import pytest

from fruitstand.manifest import ManifestRow, PreparedData
from training.data.check.claims import broken_claims, shared
from training.data.splits import film_of, variety_of


def _row(variety: str, film: str, split: str, digest: str = "") -> ManifestRow:
    name = f"{split}/{variety}/{film}"
    return ManifestRow(name, digest or name, variety.split()[0], variety, film, 0, split)


def _data(kind: str, rows: list[ManifestRow], blocks: tuple[str, ...] = ()) -> PreparedData:
    details = {"validation_blocks": list(blocks)}
    return PreparedData(Path("x"), sorted({row.label for row in rows}), rows, "x", "", kind, details)


APART = [_row("Apple 1", "r0", "train"), _row("Apple 2", "r0", "val"), _row("Apple 3", "r0", "test")]
SAME_FILM = [*APART, _row("Apple 1", "r0", "test")]
OTHER_FILM = [*APART, _row("Apple 1", "r1", "test")]
SAME_FILE = [*APART, _row("Apple 4", "r0", "test", digest="train/Apple 1/r0")]
VALIDATED = [*APART, _row("Apple 1", "r0", "val")]


def test_shared_units_are_named_by_pair_of_splits() -> None:
    """Varieties and films are counted apart."""
    assert shared(OTHER_FILM, variety_of) == {"train/val": [], "train/test": ["Apple 1"], "val/test": []}
    assert shared(OTHER_FILM, film_of) == {"train/val": [], "train/test": [], "val/test": []}
    assert shared(SAME_FILM, film_of)["train/test"] == ["Apple 1 r0"]


@pytest.mark.parametrize(
    ("kind", "rows", "says"),
    [
        pytest.param(
            "object", OTHER_FILM, "no varieties are shared; 1 are, between train/test: Apple 1", id="variety"
        ),
        pytest.param(
            "film", SAME_FILM, "no films are shared; 1 are, between train/test: Apple 1 r0", id="film"
        ),
        pytest.param(
            "object", SAME_FILE, "1 files are byte for byte in both of train/test", id="object_file"
        ),
        pytest.param("film", SAME_FILE, "1 files are byte for byte in both of train/test", id="film_file"),
        pytest.param("object", VALIDATED, "between train/val: Apple 1", id="validation"),
    ],
)
def test_a_broken_claim_is_one_sentence(kind: str, rows: list[ManifestRow], says: str) -> None:
    """It says what was claimed, what is, and an example."""
    (sentence,) = broken_claims(_data(kind, rows))
    assert says in sentence


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        pytest.param("object", APART, id="object"),
        pytest.param("film", OTHER_FILM, id="film_of_a_shared_variety"),
        pytest.param("classic", [*SAME_FILM, *SAME_FILE], id="classic_claims_nothing"),
    ],
)
def test_a_kept_claim_breaks_nothing(kind: str, rows: list[ManifestRow]) -> None:
    """Film says nothing about varieties, classic nothing at all."""
    assert broken_claims(_data(kind, rows)) == []


def test_validation_that_the_manifest_says_is_cut_from_training_films_is_no_broken_claim() -> None:
    """Only for the classes named there, and never for Test."""
    assert broken_claims(_data("film", VALIDATED, blocks=("Apple",))) == []
    assert broken_claims(_data("film", SAME_FILM, blocks=("Apple",))) != []

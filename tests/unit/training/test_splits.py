from collections import Counter

import pytest

from fruitstand.manifest import ManifestRow
from training.data.check.claims import shared
from training.data.splits import Division, divide, film_of, variety_of


def _rows(
    varieties: dict[str, list[str]], *, splits: dict[str, str], films: int, frames: int
) -> list[ManifestRow]:
    """Images of fruits: varieties, each with films, each with frames; every fourth frame is for Test."""
    return [
        ManifestRow(f"{variety}/{film}_{frame}", "", fruit, variety, f"r{film}", frame, split)
        for fruit, names in varieties.items()
        for variety in names
        for film in range(films)
        for frame in range(frames)
        for split in [splits.get(variety, "test" if frame % 4 == 3 else "train")]
    ]


def _classic(films: int, frames: int = 40) -> list[ManifestRow]:
    return _rows({f"Apple {n}": [f"Apple {n}"] for n in range(4)}, splits={}, films=films, frames=frames)


def _num(division: Division) -> Counter[str]:
    return Counter(row.split for row in division.rows)


@pytest.mark.parametrize("films", [1, 2, 3])
def test_classic_validation_is_the_middle_of_each_film_with_a_gap(films: int) -> None:
    """No frame of Training is next to one of validation, nor a turn away from it; Test stays."""
    rows = _classic(films)
    division = divide(rows, kind="classic", seed=0)
    assert {row for row in rows if row.split == "test"} == {
        row for row in division.rows if row.split == "test"
    }
    for variety in {row.object for row in rows}:
        for film in {row.film for row in rows}:
            frames = {
                split: [
                    row.frame
                    for row in division.rows
                    if (row.object, row.film, row.split) == (variety, film, split)
                ]
                for split in ("train", "val")
            }
            ordered = sorted(
                row.frame for row in rows if (row.object, row.film, row.split) == (variety, film, "train")
            )
            assert frames["val"] == ordered[13:16]
            assert frames["train"] == ordered[:12] + ordered[17:]
    assert division.details["num_gap"] == 4 * films * 2
    assert division.details["validation_blocks"] == ["Apple 0", "Apple 1", "Apple 2", "Apple 3"]


def test_classic_validation_is_whole_films_where_a_class_has_many() -> None:
    """Then no film is in both."""
    division = divide(_classic(films=10), kind="classic", seed=0)
    assert shared(division.rows, film_of)["train/val"] == []
    assert division.details["validation_blocks"] == []
    assert _num(division) == {"train": 4 * 9 * 30, "val": 4 * 30, "test": 4 * 10 * 10}


def test_validation_by_frame_takes_one_in_ten_and_leaves_out_none() -> None:
    """What the classic split did before; its neighbours are in Training."""
    rows = _classic(2)
    division = divide(rows, kind="classic", seed=0, validation="frame")
    assert _num(division) == {"train": 4 * 54, "val": 4 * 6, "test": 4 * 20}
    assert {row.path for row in division.rows} == {row.path for row in rows}


def test_a_validation_of_the_data_sets_own_is_kept() -> None:
    """The original-size set brings one."""
    rows = [*_classic(1), ManifestRow("v", "", "Apple 0", "Apple 0", "r0", 100, "val")]
    division = divide(rows, kind="classic", seed=0)
    assert _num(division)["val"] == 1
    assert division.details["validation"] == "the data set's own"


@pytest.mark.parametrize("films", [2, 3, 12])
def test_film_holds_whole_films_out(films: int) -> None:
    """None of Test's films is in Training or validation; validation keeps to that too where it can."""
    division = divide(_classic(films), kind="film", seed=0)
    both = shared(division.rows, film_of)
    assert both["train/test"] == both["val/test"] == []
    assert (both["train/val"] == []) == (films == 12)
    assert {row.label for row in division.rows if row.split == "test"} == {f"Apple {n}" for n in range(4)}
    assert {row.label for row in division.rows if row.split == "val"} == {f"Apple {n}" for n in range(4)}


def test_a_class_of_one_film_cannot_be_held_out_by_film() -> None:
    """It is left out and named, not tested on what it was trained on."""
    rows = [*_classic(2), ManifestRow("k", "", "Kiwi", "Kiwi", "", 0, "train")]
    division = divide(rows, kind="film", seed=0)
    assert division.details["left_out"] == ["Kiwi"]
    assert "Kiwi" not in {row.label for row in division.rows}


FRUITS = {
    "Apple": [f"Apple {n}" for n in range(10)],
    "Cherry": [f"Cherry {n}" for n in range(5)],
    "Lemon": ["a", "b"],
}


def test_object_holds_whole_varieties_out() -> None:
    """One in five of each fruit; a fruit of two gives one, and its validation is the middle of a film."""
    division = divide(_rows(FRUITS, splits={}, films=2, frames=40), kind="object", seed=0)
    both = shared(division.rows, variety_of)
    assert both["train/test"] == both["val/test"] == []
    assert both["train/val"] in (["a"], ["b"])
    assert division.details["validation_blocks"] == ["Lemon"]
    tested = Counter(row.label for row in division.rows if row.split == "test")
    assert tested == {"Apple": 2 * 80, "Cherry": 80, "Lemon": 80}


def test_object_keeps_the_data_sets_own_test_when_it_is_disjoint() -> None:
    """As in the 3-body set; only validation is cut, by whole varieties."""
    fruits = {name: varieties for name, varieties in FRUITS.items() if name != "Lemon"}
    own = {variety: "train" for varieties in fruits.values() for variety in varieties}
    own |= {"Apple 3": "test", "Cherry 4": "test"}
    division = divide(_rows(fruits, splits=own, films=2, frames=40), kind="object", seed=5)
    assert {row.object for row in division.rows if row.split == "test"} == {"Apple 3", "Cherry 4"}
    assert division.details["test"] == "the data set's own"
    assert not any(shared(division.rows, variety_of).values())
    assert {row.label for row in division.rows if row.split == "val"} == {"Apple", "Cherry"}


@pytest.mark.parametrize("kind", ["classic", "object", "film"])
def test_a_split_repeats_itself_and_the_seed_moves_it(kind: str) -> None:
    """Also when the rows come in another order."""
    rows = _rows(FRUITS, splits={}, films=6, frames=40)
    assert divide(rows, kind=kind, seed=0) == divide(reversed(rows), kind=kind, seed=0)
    assert divide(rows, kind=kind, seed=0).rows != divide(rows, kind=kind, seed=1).rows


@pytest.mark.parametrize(
    ("count", "expected"), [(1, {"train": 1}), (2, {"train": 1, "val": 1}), (10, {"train": 9, "val": 1})]
)
def test_small_classes_give_one_image_when_they_can(count: int, expected: dict[str, int]) -> None:
    """And lose none to a gap."""
    rows = [ManifestRow(f"{n}", "", "Kiwi", "Kiwi", "", n, "train") for n in range(count)]
    test = ManifestRow("test", "", "Kiwi", "Kiwi", "", 0, "test")
    assert _num(divide([*rows, test], kind="classic", seed=0)) == expected | {"test": 1}

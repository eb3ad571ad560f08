import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fruitstand.errors import DataError
from fruitstand.manifest import read_prepared
from training.data.check.check import check_data
from training.data.check.claims import broken_claims
from training.data.prepare import prepare_data
from training.data.twins import find_same_films

COLOURS = {"cats": (200, 60, 40), "dogs": (40, 160, 60), "birds": (50, 60, 190)}


def _write(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 40, (48, 64, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


def _class_folders(root: Path, name: str = "IMG_{:04d}.jpg", num: int = 20) -> Path:
    for at, (label, colour) in enumerate(COLOURS.items()):
        for number in range(num):
            _write(root / label / name.format(number), colour, at * 1000 + number)
    return root


def test_class_folders_alone_are_split_by_the_image(tmp_path: Path) -> None:
    """Seeded, a fifth of each class for the test, and the report says that the split is ours."""
    source = _class_folders(tmp_path / "pets")
    report = prepare_data(source=str(source), out=tmp_path / "out")
    assert report["split_kind"] == "random"
    assert "no Test of its own" in report["split_details"]["test"]
    assert report["num_images"] == {"test": 12, "train": 42, "val": 6}
    assert set(Counter(row.label for row in read_prepared(tmp_path / "out").split("test")).values()) == {4}
    prepare_data(source=str(source), out=tmp_path / "same")
    prepare_data(source=str(source), out=tmp_path / "other", seed=1)
    rows = read_prepared(tmp_path / "out").rows
    assert rows == read_prepared(tmp_path / "same").rows
    assert rows != read_prepared(tmp_path / "other").rows


def test_names_that_show_series_are_split_by_series(tmp_path: Path) -> None:
    """Neighbouring frames of one series are nearly the same picture: they stay on one side."""
    for at, (label, colour) in enumerate(COLOURS.items()):
        for number in range(40):
            name = f"{label}{number // 8}_{number % 8:02d}.jpg"
            _write(tmp_path / "pets" / label / name, colour, at * 1000 + number)
    report = prepare_data(source=str(tmp_path / "pets"), out=tmp_path / "out")
    assert report["split_kind"] == "film"
    data = read_prepared(tmp_path / "out")
    assert broken_claims(data) == []
    assert {row.film for row in data.split("test")} & {"cats0", "cats1", "cats2", "cats3", "cats4"}
    assert not {row.film for row in data.split("test")} & {row.film for row in data.split("train")}


def test_files_of_equal_bytes_stay_on_one_side(tmp_path: Path) -> None:
    """A random split would otherwise test on what it trained on; the data check sees that it did not."""
    source = _class_folders(tmp_path / "pets")
    for path in sorted((source / "cats").iterdir()):
        (source / "cats" / f"copy of {path.name}").write_bytes(path.read_bytes())
    prepare_data(source=str(source), out=tmp_path / "out")
    data = read_prepared(tmp_path / "out")
    assert broken_claims(data) == []
    test = {row.sha256 for row in data.split("test")}
    assert test
    assert not test & {row.sha256 for row in data.split("train")}


@pytest.mark.parametrize(
    ("folders", "test_is"),
    [
        pytest.param(("TRAIN", "Test"), "the data set's own", id="upper_case"),
        pytest.param(("Training", "Testing"), "the data set's own", id="training_testing"),
        pytest.param(("train", "valid", "test"), "the data set's own", id="with_valid"),
        pytest.param(("train", "dev", "eval"), "the data set's own", id="dev_and_eval"),
        pytest.param(("train", "val"), "the data set's own validation images", id="val_alone_is_the_test"),
    ],
)
def test_split_folders_are_found_in_every_spelling(
    folders: tuple[str, ...], test_is: str, tmp_path: Path
) -> None:
    """Their images stay where they are."""
    for number, folder in enumerate(folders):
        for at, (label, colour) in enumerate(COLOURS.items()):
            for image in range(8):
                seed = number * 10_000 + at * 1000 + image
                _write(tmp_path / "set" / folder / label / f"{seed}.jpg", colour, seed)
    report = prepare_data(source=str(tmp_path / "set"), out=tmp_path / "out")
    assert report["split_details"]["test"] == test_is
    tested = {row.path.split("/")[1] for row in read_prepared(tmp_path / "out").split("test")}
    assert tested == {folders[-1]}


LABELS = (
    "007",
    "7",
    "a: b",
    'say "hi", twice',
    "kept blank ",
    "x" * 200,
    "水果/苹果",
    "ä|b\\c",
    "<b>$5$</b>",
)
"""Text that a separator, a number, a file name, a table or a page could spoil."""


def _rows(root: Path) -> list[dict[str, str]]:
    rows = []
    for at, label in enumerate(LABELS):
        for number in range(6):
            name = f"images/{at}/{number}.jpg"
            _write(root / name, ((at * 37) % 256, (at * 91) % 256, 128), at * 1000 + number)
            rows.append({"path": name, "label": label, "split": "test" if number == 5 else "Training"})
    return rows


def _as_csv(root: Path) -> Path:
    import csv

    rows = _rows(root)
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root / "labels.csv"


def _as_parquet(root: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(_rows(root)), root / "labels.parquet")
    return root / "labels.parquet"


def _as_imagefolder(root: Path) -> Path:
    lines = (
        {"file_name": row["path"], **{key: row[key] for key in ("label", "split")}} for row in _rows(root)
    )
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return root


@pytest.mark.parametrize("write", [_as_csv, _as_parquet, _as_imagefolder])
def test_a_table_gives_paths_labels_and_splits(write, tmp_path: Path) -> None:
    """Every label comes back letter for letter, in reports too."""
    (tmp_path / "set").mkdir()
    report = prepare_data(source=str(write(tmp_path / "set")), out=tmp_path / "out")
    data = read_prepared(tmp_path / "out")
    assert data.labels == sorted(LABELS)
    assert report["num_images"]["test"] == len(LABELS)
    assert all(row.path.endswith("/5.jpg") for row in data.split("test"))
    result = check_data(tmp_path / "out").to_json()
    assert set(result["images_per_class"]) == set(LABELS)
    assert len(list((tmp_path / "out" / "check" / "sheets").iterdir())) == len(LABELS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("name,kind\na.jpg,cat\n", "its columns are 'name', 'kind'", id="other_columns"),
        pytest.param("path,label\na.jpg,\nb.jpg,cat\nc.jpg,dog\n", "is empty", id="empty_label"),
        pytest.param('path,label\na.jpg,"two\nlines"\nb.jpg,cat\n', "line break", id="line_break"),
        pytest.param("path,label\na.jpg,bell\x07\nb.jpg,cat\n", "control character", id="control"),
        pytest.param("path,label\na.jpg,cat\n./a.jpg,dog\n", "listed twice", id="listed_twice"),
        pytest.param("path,label,split\na.jpg,cat,later\n", "split 'later', allowed train", id="split"),
        pytest.param("path,label\n", "no row", id="no_rows"),
        pytest.param("", "no row", id="empty_file"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_row(text: str, says: str, tmp_path: Path) -> None:
    """One line, before any image is read."""
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        prepare_data(source=str(tmp_path / "labels.csv"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_in_one_folder_without_classes_are_refused(tmp_path: Path) -> None:
    """With the layouts that would do."""
    _write(tmp_path / "pictures" / "a.jpg", (1, 2, 3), 0)
    with pytest.raises(DataError, match=r"all images lie in one folder; expected <class>/\*\.jpg"):
        prepare_data(source=str(tmp_path / "pictures"), out=tmp_path / "out")


def test_classes_that_are_hard_to_tell_apart_are_kept() -> None:
    """Only the same pictures make two classes one; a nearest neighbour that guesses does not."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 432), dtype=np.uint8)
    labels = ["cat"] * 100 + ["dog"] * 100
    assert find_same_films(noise, labels) == []
    again = (noise[:100] // 2 * 2).astype(np.uint8)
    twins = find_same_films(np.concatenate([noise[:100], again]), labels)
    assert [twin["label"] for twin in twins] == ["dog"]

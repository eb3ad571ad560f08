import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fruitstand.errors import ArtefactError, DataError, UsageError
from fruitstand.images.synthetic import encode, pattern
from fruitstand.manifest import PreparedData, read_prepared
from tests.command import fruitstand
from training.data.check.claims import broken_claims, shared
from training.data.class_folders import find_images
from training.data.file_tree import open_tree
from training.data.painter import paint_dataset
from training.data.prepare import prepare_data
from training.data.splits import film_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small painted Fruits-360 tree to break in various ways."""
    return paint_dataset(tmp_path, num_classes=2, images_per_class=24, seed=1)


def test_splits_are_the_data_sets_own_and_validation_comes_from_training(tree: Path, tmp_path: Path) -> None:
    """Test stays Test; the middle of each film validates; nothing is lost or doubled."""
    report = prepare_data(source=str(tree), out=tmp_path / "out")
    assert report["num_images"] == {"test": 24, "train": 20, "val": 4}
    data = read_prepared(tmp_path / "out")
    assert {row.path.split("/")[1] for row in data.split("test")} == {"Test"}
    assert {row.path.split("/")[1] for row in data.split("val")} == {"Training"}
    assert len({row.path for row in data.rows}) == 48
    assert all((data.directory / row.path).is_file() for row in data.rows)


@pytest.mark.parametrize("split", ["classic", "film"])
def test_the_split_is_stored_and_what_it_leaves_out_is_not_copied(split: str, tmp_path: Path) -> None:
    """Manifest and report say the same; no image lies there without a row."""
    report = prepare_data(
        source="generated", out=tmp_path / "out", split=split, num_classes=2, images_per_class=80
    )
    data = read_prepared(tmp_path / "out")
    assert (data.split_kind, data.split_details) == (split, report["split_details"])
    assert report["split_details"]["num_gap"] > 0
    files = {str(path.relative_to(data.directory)) for path in data.directory.rglob("*.jpg")}
    assert files == {row.path for row in data.rows}


def test_a_variety_cannot_be_class_and_held_out(tree: Path, tmp_path: Path) -> None:
    """What nobody trained on cannot be an answer."""
    with pytest.raises(UsageError, match="holds out whole varieties"):
        prepare_data(source=str(tree), out=tmp_path / "out", split="object", label_level="variety")


def test_validation_by_frame_claims_nothing_of_itself(tree: Path, tmp_path: Path) -> None:
    """Beside held-out films it shares films with Training and says so; Test shares none."""
    assert prepare_data(source=str(tree), out=tmp_path / "a", validation="frame")["num_images"]["val"] == 4
    report = prepare_data(source=str(tree), out=tmp_path / "b", split="film", validation="frame")
    assert report["split_details"]["validation_blocks"] == read_prepared(tmp_path / "b").labels
    data = read_prepared(tmp_path / "b")
    assert broken_claims(data) == []
    assert shared(data.rows, film_of)["train/val"] != []
    assert shared(data.rows, film_of)["train/test"] == []


def test_file_names_tell_film_and_frame(prepared: PreparedData) -> None:
    """Fruits-360's prefix is the film, its number the frame."""
    row = next(row for row in prepared.rows if row.path.endswith("/r_3_100.jpg"))
    assert (row.film, row.frame) == ("r", 3)


def test_the_painter_repeats_itself(prepared: PreparedData, tmp_path: Path) -> None:
    """The same seed paints the same bytes, another seed others."""
    arguments = {"source": "generated", "num_classes": 4, "images_per_class": 40}
    prepare_data(out=tmp_path / "same", **arguments)
    prepare_data(out=tmp_path / "other", seed=7, **arguments)
    digests = [row.sha256 for row in prepared.rows]
    assert [row.sha256 for row in read_prepared(tmp_path / "same").rows] == digests
    assert not set(digests) & {row.sha256 for row in read_prepared(tmp_path / "other").rows}


def test_painted_images_say_so(prepared: PreparedData) -> None:
    """Nobody can take them for real fruit."""
    assert prepared.source == "generated"
    assert all(label.startswith("Generated") for label in prepared.labels)


@pytest.mark.parametrize("spelling", ["fruits-360_dataset/fruits-360", "fruits-360_100x100/fruits-360", "."])
def test_every_folder_spelling_is_found(tree: Path, spelling: str, tmp_path: Path) -> None:
    """The tree is found by its Training and Test folders, not by what is around them."""
    nested = tmp_path / "download" / spelling
    nested.parent.mkdir(parents=True, exist_ok=True)
    tree.rename(nested)
    assert prepare_data(source=str(tmp_path / "download"), out=tmp_path / "out")["num_classes"] == 2


def test_a_zip_is_read_and_one_that_points_outside_is_refused(tree: Path, tmp_path: Path) -> None:
    """A download needs no unpacking; a hostile one writes nothing."""
    archive = tmp_path / "fruits.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tree.rglob("*.jpg"):
            file.write(path, path.relative_to(tree.parent))
    assert prepare_data(source=str(archive), out=tmp_path / "out")["num_images"]["test"] == 24
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../../escaped.jpg", b"x")
    with pytest.raises(DataError, match="points outside"):
        prepare_data(source=str(archive), out=tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_a_corrupt_image_is_named_skipped_and_counted(tree: Path, tmp_path: Path) -> None:
    """The others are kept, and the report says which one is missing and why."""
    victim = sorted((tree / "Training").rglob("*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:400])
    report = prepare_data(source=str(tree), out=tmp_path / "out")
    assert report["num_skipped"] == 1
    assert report["skipped"][0]["file"] == str(victim.relative_to(tree))
    assert "truncated" in report["skipped"][0]["reason"]
    assert len(read_prepared(tmp_path / "out").rows) == 47


def test_names_with_spaces_and_letters_of_any_script_are_kept(tree: Path, tmp_path: Path) -> None:
    """From a folder and from a zip."""
    names = ("Äpfel & Co 1", "水果 2")
    for folder, name in zip(sorted((tree / "Training").iterdir()), names, strict=True):
        for split in ("Training", "Test"):
            (tree / split / folder.name).rename(tree / split / name)
    first = sorted((tree / "Training" / names[0]).iterdir())[0]
    first.rename(first.with_name("ein Bild, später.jpg"))
    archive = shutil.make_archive(str(tmp_path / "früchte"), "zip", tree)
    for number, source in enumerate((str(tree), archive)):
        prepare_data(source=source, out=tmp_path / f"out {number}")
        data = read_prepared(tmp_path / f"out {number}")
        assert data.labels == list(names)
        assert any(row.path.endswith("/ein Bild, später.jpg") for row in data.rows)
        assert all((data.directory / row.path).is_file() for row in data.rows)


def test_a_name_that_is_no_text_is_skipped_and_counted(tree: Path, tmp_path: Path) -> None:
    """Linux allows any bytes; a manifest does not."""
    victim = sorted((tree / "Training").rglob("*.jpg"))[0]
    victim.rename(os.fsdecode(os.fsencode(victim.parent) + b"/\xff.jpg"))
    report = prepare_data(source=str(tree), out=tmp_path / "out")
    assert [one["reason"] for one in report["skipped"]] == ["its name is not UTF-8"]


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_full_disk_leaves_the_old_data_and_no_rubbish(tree: Path, tmp_path: Path) -> None:
    """One line, exit 1; what was prepared before on that disk is intact."""
    with _small_disk(tmp_path / "disk"):
        prepare_data(source=str(tree), out=tmp_path / "disk" / "old")
        before = (tmp_path / "disk" / "old" / "manifest.parquet").read_bytes()
        new = tmp_path / "disk" / "new"
        big = paint_dataset(tmp_path / "big", num_classes=2, images_per_class=100, seed=2)
        done = subprocess.run(
            [sys.executable, "-m", "fruitstand", "data", "prepare", "--source", str(big), "--out", str(new)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "the disk is full" in done.stderr
        assert done.stderr.count("\n") == 1
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["old"]
        assert (tmp_path / "disk" / "old" / "manifest.parquet").read_bytes() == before
        assert read_prepared(tmp_path / "disk" / "old").labels


def _empty(tree: Path) -> None:
    for path in tree.rglob("*.jpg"):
        path.unlink()


def _without_training(tree: Path) -> None:
    (tree / "Training").rename(tree / "Pictures")


def _one_image(tree: Path) -> None:
    for path in sorted((tree / "Training").iterdir())[0].iterdir():
        path.unlink()
    sorted((tree / "Training").iterdir())[0].joinpath("0_100.jpg").write_bytes(encode(pattern(100, 100)))


def _all_corrupt(tree: Path) -> None:
    for path in tree.rglob("*/Generated 001*/*.jpg"):
        path.write_bytes(b"no image")


def _only_in_test(tree: Path) -> None:
    (tree / "Test" / "Durian").mkdir()
    (tree / "Test" / "Durian" / "0_100.jpg").write_bytes(encode(pattern(100, 100)))


def _renamed_in_training(tree: Path) -> None:
    (tree / "Training" / "Generated 001 red").rename(tree / "Training" / "Apple")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        pytest.param(_empty, "has no images", id="empty"),
        pytest.param(_all_corrupt, "none of its images can be decoded", id="class_all_corrupt"),
        pytest.param(_without_training, "not both Training and Test", id="training_not_named"),
        pytest.param(
            _one_image, r"has 1 training image\(s\) and 0 for validation", id="class_with_one_image"
        ),
        pytest.param(_only_in_test, "'Durian' is in Test but not in Training", id="class_only_in_test"),
        pytest.param(
            _renamed_in_training,
            r"'Generated 001 red' is in Test but not in Training \(only in Training: 'Apple'",
            id="class_renamed_in_one_split",
        ),
    ],
)
def test_unusable_data_are_refused_with_what_to_do(break_it, says: str, tree: Path, tmp_path: Path) -> None:
    """A clear error, and no half-made folder."""
    break_it(tree)
    with pytest.raises(DataError, match=says):
        prepare_data(source=str(tree), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_class_without_test_images_is_named(tree: Path, tmp_path: Path) -> None:
    """It can be trained, but no evaluation will see it."""
    shutil.rmtree(tree / "Test" / "Generated 002 green")
    done = fruitstand("data", "prepare", "--source", tree, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "class 'Generated 002 green' has no image in Test" in done.stdout
    assert "Generated 001" not in done.stdout


def test_a_class_that_is_another_one_under_a_second_name_is_left_out(tree: Path, tmp_path: Path) -> None:
    """Identical files with two labels cannot be learned; the report names both classes."""
    (first, _) = sorted((tree / "Training").iterdir())
    for split in ("Training", "Test"):
        shutil.copytree(tree / split / first.name, tree / split / "Zzz renamed")
    report = prepare_data(source=str(tree), out=tmp_path / "out")
    assert report["twins"] == [
        {"object": "Zzz renamed", "label": "Zzz renamed", "same_as": first.name, "num_images": 24}
    ]
    assert report["num_classes"] == 2
    assert len(read_prepared(tmp_path / "out").rows) == 48


def test_a_film_that_was_cut_out_twice_is_one_class(tree: Path, tmp_path: Path) -> None:
    """Other bytes, other noise: the same fruit under two names."""
    first = next(iter(sorted((tree / "Training").iterdir())))
    for split in ("Training", "Test"):
        again = tree / split / "Zzz again"
        again.mkdir()
        for path in (tree / split / first.name).iterdir():
            Image.open(path).save(again / path.name, quality=70)
    report = prepare_data(source=str(tree), out=tmp_path / "out")
    assert [(one["label"], one["same_as"]) for one in report["twins"]] == [("Zzz again", first.name)]
    assert report["num_classes"] == 2


def test_a_missing_source_and_a_taken_target_are_refused(tree: Path, tmp_path: Path) -> None:
    """Nothing is overwritten."""
    with pytest.raises(DataError, match="no such folder"):
        prepare_data(source=str(tmp_path / "nothing"), out=tmp_path / "out")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ArtefactError, match="exists already"):
        prepare_data(source=str(tree), out=tmp_path / "taken")


def test_two_level_data_are_labelled_by_fruit_or_by_variety(tmp_path: Path) -> None:
    """The 3-body layout has Training/<fruit>/<variety>."""
    for split in ("Training", "Test"):
        varieties = (("Apple", "Red 1"), ("Apple", "Green 2"), ("Cherry", "Dark 1"))
        for number, (fruit, variety) in enumerate(varieties):
            folder = tmp_path / "set" / split / fruit / variety
            folder.mkdir(parents=True)
            for frame in range(3):
                (folder / f"r_{frame}_100.jpg").write_bytes(encode(pattern(100, 100 + frame, phase=number)))
    prepare_data(source=str(tmp_path / "set"), out=tmp_path / "fruit")
    assert read_prepared(tmp_path / "fruit").labels == ["Apple", "Cherry"]
    prepare_data(source=str(tmp_path / "set"), out=tmp_path / "variety", label_level="variety")
    data = read_prepared(tmp_path / "variety")
    assert data.labels == ["Apple Green 2", "Apple Red 1", "Cherry Dark 1"]
    assert {row.object for row in data.rows} == set(data.labels)


@pytest.mark.real_data
def test_the_real_tree_is_read_completely(real_data: Path) -> None:
    """85 classes, 18,387 images, every name understood."""
    with open_tree(real_data / "fruits-360_dataset") as tree:
        found = find_images(tree.listing())
    assert len(found) == 18_387
    assert len({image.label for image in found}) == 85
    assert {image.film for image in found} <= {"", "r", "r0", "r1", "r2", "r3", "r4", "r5"}

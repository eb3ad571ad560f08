import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fruitstand.errors import DataError
from fruitstand.manifest import ManifestRow, PreparedData, read_prepared, write_manifest
from training.data.check.check import check_data
from training.data.prepare import prepare_data


def _check(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fruitstand", "data", "check", str(directory), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(prepared: PreparedData, tmp_path: Path) -> PreparedData:
    """The painted folder of the session, to change."""
    shutil.copytree(prepared.directory, tmp_path / "copy")
    return read_prepared(tmp_path / "copy")


def _rewrite(data: PreparedData, rows: list[ManifestRow], kind: str) -> None:
    write_manifest(data.directory, rows, split_kind=kind, split_details=data.split_details)


def test_the_classic_split_passes_and_is_called_leaked(prepared: PreparedData, tmp_path: Path) -> None:
    """It claims nothing about films, so this is no failure; the numbers are there to read."""
    done = _check(prepared.directory, "--out", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr
    assert "the classic split leaks by design: 8 of the 8 films in Test are also in Training" in done.stdout
    result = json.loads((tmp_path / "report" / "check.json").read_text())
    assert result["shared_films"]["train/test"]["num"] == 8
    assert result["near_duplicates"]["num_test_images_near_training"] > 40
    assert not (prepared.directory / "check").exists()


def test_a_film_split_passes_and_one_that_only_says_so_fails(copy: PreparedData, tmp_path: Path) -> None:
    """Exit 1 and a sentence that says what is shared; the reports are written all the same."""
    report = prepare_data(source=str(copy.directory / "images"), out=tmp_path / "film", split="film", seed=3)
    assert check_data(tmp_path / "film").ok
    assert report["split_details"]["test"] == "whole films"
    _rewrite(copy, copy.rows, "film")
    done = _check(copy.directory, "--json")
    assert done.returncode == 1
    assert "claims that no films are shared; 8 are, between train/test" in done.stderr
    assert json.loads(done.stdout)["ok"] is False
    assert (copy.directory / "check" / "check.html").is_file()


def test_a_damaged_file_fails_the_check_and_an_odd_one_does_not(copy: PreparedData, tmp_path: Path) -> None:
    """Damage makes a folder useless; another size or a stray file is only worth a look."""
    odd = copy.directory / copy.rows[0].path
    Image.open(odd).convert("L").resize((90, 100)).save(odd)
    (copy.directory / "images" / "stray.jpg").write_bytes(b"no image")
    digest = hashlib.sha256(odd.read_bytes()).hexdigest()
    _rewrite(copy, [dataclasses.replace(copy.rows[0], sha256=digest), *copy.rows[1:]], "classic")
    result = check_data(copy.directory, out=tmp_path / "odd").to_json()
    assert result["ok"]
    assert [one["reason"] for one in result["files"]["odd"]] == [
        "90 x 100 pixels, most are 100 x 100 pixels",
        "not in the manifest",
    ]
    assert result["files"]["modes"] == {"RGB": 159, "L": 1}
    victim = copy.directory / copy.rows[7].path
    victim.write_bytes(victim.read_bytes()[:300])
    result = check_data(copy.directory, out=tmp_path / "damaged").to_json()
    assert not result["ok"]
    assert result["failures"] == [f"{copy.rows[7].path}: changed since it was prepared"]


def test_the_same_fruit_under_two_names_is_named(copy: PreparedData, tmp_path: Path) -> None:
    """Encoded again, so that no file is equal; as with two cherries of the real data."""
    victim, other, *_ = copy.labels
    images, tree = copy.directory / "images", tmp_path / "two levels"
    for split in ("Training", "Test"):
        # Two varieties of one fruit: as classes of their own, preparing would leave one out.
        shutil.copytree(images / split / victim, tree / split / "Cherry" / "Cherry 2")
        shutil.copytree(images / split / victim, tree / split / "Cherry" / "Cherry 4")
        shutil.copytree(images / split / other, tree / split / "Other" / other)
        for path in (tree / split / "Cherry" / "Cherry 4").iterdir():
            with Image.open(path) as image:
                image.save(path, quality=70)
    prepare_data(source=str(tree), out=tmp_path / "twins")
    result = check_data(tmp_path / "twins").to_json()
    assert [twin["objects"] for twin in result["twin_objects"]] == [["Cherry 2", "Cherry 4"]]
    assert min(result["twin_objects"][0]["shares"]) > 0.9
    assert any("'Cherry 2' and 'Cherry 4' show the same fruit" in line for line in result["summary"])
    assert result["exact_duplicates"]["num_files_repeated"] == 0


class _Page(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Pictures, and anything else that would be fetched."""
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(values["src"] or "")
        self.references += [values[name] or "" for name in ("href", "data", "action") if name in values]

    def handle_data(self, data: str) -> None:
        """Words."""
        self.text += data


def test_the_page_stands_alone_and_shows_pictures(prepared: PreparedData, tmp_path: Path) -> None:
    """One file to send to somebody: every picture is inside and opens; names cannot inject anything."""
    result = check_data(prepared.directory, out=tmp_path).to_json()
    content = (tmp_path / "check.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(content)
    assert page.references == []
    assert len(page.pictures) >= 1 + 2 * len(prepared.labels)
    for picture in page.pictures:
        match = re.fullmatch(r"data:image/(?:png|jpeg);base64,(.+)", picture)
        assert match
        Image.open(io.BytesIO(base64.b64decode(match[1]))).load()
    assert result["summary"][0] in page.text
    pairs = result["near_duplicates"]["num_pairs"]
    assert pairs["train/train"] > 0
    assert f"inside a split: train {pairs['train/train']}, val" in page.text


def test_class_names_of_any_script_are_checked_and_drawn(copy: PreparedData, tmp_path: Path) -> None:
    """Spaces, markup, formula signs and letters that the plot's font lacks: all four reports are written."""
    names = dict(zip(copy.labels, ["水果 1", "Äpfel & Co", "<b>c</b>", "$d$"], strict=True))
    _rewrite(copy, [dataclasses.replace(row, label=names[row.label]) for row in copy.rows], "classic")
    (copy.directory / "labels.txt").write_text("".join(f"{name}\n" for name in names.values()))
    done = _check(copy.directory, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads((tmp_path / "out" / "check.json").read_text())
    assert set(result["images_per_class"]) == set(names.values())
    assert len(list((tmp_path / "out" / "sheets").rglob("*.png"))) == 4


def test_there_is_a_sheet_of_samples_for_each_class(prepared: PreparedData, tmp_path: Path) -> None:
    """A line each for train, val and test, eight tiles wide; the balance plot lies beside them."""
    check_data(prepared.directory, out=tmp_path)
    sheets = sorted((tmp_path / "sheets").iterdir())
    assert [sheet.stem for sheet in sheets] == prepared.labels
    with Image.open(sheets[0]) as sheet:
        assert sheet.size == (640, 240)
        assert sheet.convert("L").getextrema()[0] < 200, "it shows something"
    with Image.open(tmp_path / "balance.png") as plot:
        assert plot.width > 600


def test_a_folder_that_records_no_claim_is_refused(copy: PreparedData) -> None:
    """A manifest from before splits were recorded can still be read, not checked."""
    _rewrite(copy, copy.rows, "")
    assert read_prepared(copy.directory).rows == copy.rows
    with pytest.raises(DataError, match="does not record the kind of split"):
        check_data(copy.directory)


def _linked(source: Path, target: Path, every: int, varieties: int) -> None:
    """A part of a real tree: some of its class folders, of each every so manieth file, as links."""
    for split in ("Training", "Test"):
        folders = sorted(path for path in (source / split).rglob("*") if any(path.glob("*.jpg")))
        for folder in folders[:: max(1, len(folders) // varieties)]:
            linked = target / folder.relative_to(source)
            linked.mkdir(parents=True)
            for path in sorted(folder.glob("*.jpg"))[::every]:
                (linked / path.name).symlink_to(path)


@pytest.mark.real_data
def test_the_real_classic_split_is_leaked_by_construction(real_data: Path, tmp_path: Path) -> None:
    """Nearly every film of Test is in Training, and most of its images have a near duplicate there."""
    _linked(real_data / "fruits-360_dataset" / "fruits-360", tmp_path / "part", every=2, varieties=28)
    prepare_data(source=str(tmp_path / "part"), out=tmp_path / "data")
    result = check_data(tmp_path / "data").to_json()
    assert result["ok"]
    assert result["shared_films"]["train/test"]["num"] >= 0.9 * result["num_test_films"]
    assert result["near_duplicates"]["share_of_test"] > 0.5
    assert result["summary"][0].startswith("the classic split leaks by design")


@pytest.mark.real_data
def test_the_real_object_split_shares_no_variety(real_data: Path, tmp_path: Path) -> None:
    """The author's own Test; two of its apples, which are in Training under other names, leave Training."""
    tree = tmp_path / "part"
    _linked(real_data / "fruits-360_3-body-problem", tree, every=4, varieties=1000)
    report = prepare_data(source=str(tree), out=tmp_path / "data", split="object")
    assert [(twin["object"], twin["same_as"]) for twin in report["twins"]] == [
        ("Apple Rotten 1", "Apple 21"),
        ("Apple worm 1", "Apple 22"),
    ]
    result = check_data(tmp_path / "data").to_json()
    assert result["ok"]
    assert {pair: found["num"] for pair, found in result["shared_objects"].items()} == {
        "train/val": 0,
        "train/test": 0,
        "val/test": 0,
    }
    assert result["exact_duplicates"]["shared"]["train/test"] == 0

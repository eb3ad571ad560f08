import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fruitstand.errors import UsageError
from fruitstand.images.synthetic import encode, pattern
from fruitstand_client import ImageRejected, Prediction, RankedLabel
from fruitstand_client.command.output import FORMATS, TextRows, open_rows
from fruitstand_client.command.sources import archive_images, count_images, find_images
from fruitstand_client.explanation import Crop
from fruitstand_client.images import image_name, read_image
from fruitstand_client.prediction import NOT_KNOWN

RANKED = (RankedLabel("Apple, red", 0.75), RankedLabel("Pear", 0.2))
GOOD = Prediction("a [1].jpg", RANKED, "3", known=0.875, label_set=("Apple, red",))
BAD = Prediction("b\udcff.jpg", failure=ImageRejected("not an image"))
ROW = {
    "path": "a [1].jpg",
    "label": "Apple, red",
    "probability": 0.75,
    "top_k": [{"label": "Apple, red", "probability": 0.75}, {"label": "Pear", "probability": 0.2}],
    "known": 0.875,
    "label_set": ["Apple, red"],
    "model_version": "3",
    "converted_from": None,
    "error": None,
}
JPEG = encode(pattern(40, 40))


def written(output_format: str) -> list[str]:
    """Both predictions as lines of text."""
    file = io.BytesIO()
    rows = TextRows(file, output_format)
    rows.write(GOOD)
    rows.write(BAD)
    return file.getvalue().decode().splitlines()


def test_jsonl_rows_have_the_contracts_fields() -> None:
    """One row an image, an error in its own row; a name that is no UTF-8 survives."""
    good, bad = map(json.loads, written("jsonl"))
    assert good == ROW
    assert (bad["path"], bad["label"], bad["top_k"], bad["error"]) == (BAD.path, None, [], "not an image")


def test_csv_and_table_show_every_image() -> None:
    """Commas are quoted, brackets are no markup."""
    header, good, bad = written("csv")
    assert header == "path,label,probability,top_k,known,label_set,model_version,converted_from,error"
    assert good == 'a [1].jpg,"Apple, red",0.75,"Apple, red 0.750000; Pear 0.200000",0.875,"Apple, red",3,,'
    assert bad == "b\\udcff.jpg,,,,,,,,not an image"
    _, good, bad = written("table")
    assert good.split("  ")[0] == "Apple, red"
    assert "a [1].jpg" in good
    assert bad.endswith("error: not an image")


@pytest.mark.parametrize(
    ("known", "abstain", "label"),
    [
        pytest.param(0.2, True, None, id="not_known"),
        pytest.param(0.2, False, "Apple, red", id="not_known_and_nobody_asked"),
        pytest.param(0.5, True, "Apple, red", id="just_known"),
        pytest.param(None, True, "Apple, red", id="not_calibrated"),
    ],
)
def test_abstaining_takes_the_label_of_an_unknown_image(
    known: float | None, abstain: bool, label: str | None
) -> None:
    """Only where the version tells, and only where the caller asked; the ranking stays."""
    one = replace(GOOD, known=known, abstain=abstain)
    assert one.label == label
    assert one.to_dict()["label"] == label
    assert one.top_k == RANKED


def test_the_table_names_no_class_for_an_unknown_image() -> None:
    """All classes go among the others."""
    file = io.BytesIO()
    TextRows(file, "table", header=False).write(replace(GOOD, known=0.2))
    line = file.getvalue().decode()
    assert line.startswith(NOT_KNOWN)
    assert line.endswith("[Apple, red 0.750, Pear 0.200]\n")


def test_parquet_rows_are_those_of_jsonl(tmp_path: Path) -> None:
    """With the lists as lists; the file appears when all rows are there."""
    out = tmp_path / "out.parquet"
    with open_rows("parquet", out) as rows:
        rows.write(GOOD)
        rows.write(BAD)
        assert not out.exists()
    good, bad = pq.read_table(out).to_pylist()
    assert good == {
        **ROW,
        "top_k": [{"label": "Apple, red", "probability": 0.75}, pytest.approx(ROW["top_k"][1])],
    }
    assert (bad["path"], bad["error"]) == ("b\\udcff.jpg", "not an image")


def test_a_failed_run_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    """Table and parquet appear whole or not at all."""
    for output_format in ("table", "parquet"):
        with pytest.raises(ZeroDivisionError), open_rows(output_format, tmp_path / "out") as rows:
            rows.write(GOOD)
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    assert set(FORMATS) == {"table", "jsonl", "csv", "parquet"}


def test_files_folders_and_patterns_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the arguments; folders sorted, to the bottom and through links."""
    for name in ("b/2.jpg", "b/1.PNG", "b/c/3.webp", "a.jpg", "notes.txt", "b/notes.txt", "elsewhere/4.bmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    arguments = ["a.jpg", "b", "*.txt", "https://host/x.jpg"]
    names = [str(path) for path in find_images(arguments)]
    assert names == [
        "a.jpg",
        "b/1.PNG",
        "b/2.jpg",
        "b/c/3.webp",
        "b/linked/4.bmp",
        "notes.txt",
        "https://host/x.jpg",
    ]
    assert count_images(arguments) == 7
    monkeypatch.setattr("sys.stdin", io.StringIO("a.jpg\n\nnot there.jpg\n"))
    assert count_images(["-", "b"]) is None
    assert [str(path) for path in find_images(["-"])] == ["a.jpg", "not there.jpg"]


@pytest.mark.parametrize(
    "argument", ["nothing.jpg", "*.nothing", "empty", "text.zip", "text.tar", "none.zip"]
)
def test_an_argument_that_names_no_image_is_refused(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error is told before anything is sent, not answered with nothing."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "text.tar").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=argument.replace("*", r"\*")):
        count_images([argument])


def test_a_folder_that_contains_itself_is_named(tmp_path: Path) -> None:
    """The link is to be removed; a link to a folder beside it is no loop."""
    inner = tmp_path / "images" / "inner"
    inner.mkdir(parents=True)
    (inner / "1.jpg").write_bytes(b"x")
    (tmp_path / "images" / "again").symlink_to(inner)
    assert len(list(find_images([str(tmp_path)]))) == 2
    (inner / "loop").symlink_to(tmp_path / "images")
    with pytest.raises(UsageError, match=r"/again/loop: is a link .* remove the link"):
        list(find_images([str(tmp_path)]))


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar, compressed as its name says."""
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_images_in_archives_are_read_in_place(name: str, tmp_path: Path) -> None:
    """In the archive's order, named by archive and member; a link inside leads nowhere."""
    members = {"z/2.jpg": JPEG, "notes.txt": b"x", "1.JPG": JPEG + b"\0"}
    path = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name, members)
    read = [read_image(one) for one in find_images([str(path)])]
    assert [(one.name, one.content) for one in read] == [
        (f"{path}/z/2.jpg", JPEG),
        (f"{path}/1.JPG", JPEG + b"\0"),
    ]
    assert count_images([str(path)]) == (2 if name.endswith("zip") else None)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_zip_bomb_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """And the images beside it are answered."""
    path = make_zip(tmp_path / "bomb.zip", {"bomb.jpg": bytes(50_000_000), "good.jpg": JPEG})
    bomb, good = [read_image(one) for one in find_images([str(path)])]
    assert "too many bytes" in str(bomb.failure)
    assert good.content == JPEG


def test_damage_in_an_archive_is_told(tmp_path: Path) -> None:
    """In a zip one image fails; a tar ends, in one line."""
    noise = JPEG + os.urandom(50_000)
    zipped = make_zip(tmp_path / "a.zip", {"1.jpg": noise, "2.jpg": JPEG})
    content = bytearray(zipped.read_bytes())
    content[2000:2010] = bytes(10)
    zipped.write_bytes(content)
    first, second = [read_image(one) for one in archive_images(str(zipped))]
    assert "damaged or encrypted in the archive" in str(first.failure)
    assert second.content == JPEG
    tarred = make_tar(tmp_path / "a.tar.gz", {"1.jpg": noise, "2.jpg": noise})
    tarred.write_bytes(tarred.read_bytes()[:60_000])
    images = archive_images(str(tarred))
    assert image_name(next(images)).endswith("a.tar.gz/1.jpg")
    with pytest.raises(UsageError, match="truncated"):
        list(images)


@pytest.mark.parametrize(
    ("method", "offset"),
    [
        pytest.param(zipfile.ZIP_DEFLATED, 0, id="deflate"),  # the first block's kind
        pytest.param(zipfile.ZIP_BZIP2, 4, id="bzip2"),  # the first block's mark
        pytest.param(zipfile.ZIP_LZMA, 4, id="lzma"),  # the coder's properties
    ],
)
def test_one_flipped_byte_in_a_zip_fails_one_image(method: int, offset: int, tmp_path: Path) -> None:
    """However it is compressed, whatever its decompressor raises; the image beside it is read."""
    path = make_zip(tmp_path / "a.zip", {"1.jpg": JPEG, "2.jpg": JPEG}, method)
    content = bytearray(path.read_bytes())
    content[30 + len("1.jpg") + offset] ^= 0xFF  # behind the local header and the name
    path.write_bytes(content)
    first, second = [read_image(one) for one in archive_images(str(path))]
    assert str(first.failure).startswith("cannot be read: ")
    assert second.content == JPEG


def test_the_client_imports_nothing_it_does_not_need() -> None:
    """No torch, no Pillow; gRPC and numpy not before the first client, so that the import is quick."""
    heavy = "{'torch', 'timm', 'onnx', 'onnxruntime', 'nvidia', 'PIL', 'pyarrow', 'grpc', 'numpy'}"
    script = "import sys, fruitstand_client, fruitstand_client.command.classify;"
    script += f"print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    script = (
        "import sys, fruitstand_client as f; f.Client('a:1'); print(*{'torch', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("crop", "size", "box"),
    [
        pytest.param(Crop(aspect=1, share=1, is_squashed=False), (100, 100), (0, 0, 100, 100), id="whole"),
        pytest.param(Crop(aspect=1, share=1, is_squashed=False), (300, 100), (100, 0, 200, 100), id="wide"),
        pytest.param(Crop(aspect=2, share=0.5, is_squashed=False), (100, 100), (25, 38, 75, 62), id="input"),
        pytest.param(Crop(aspect=1, share=0.8, is_squashed=True), (300, 100), (30, 10, 270, 90), id="squash"),
    ],
)
def test_a_crop_names_the_part_that_the_network_saw(
    crop: Crop, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """Around the centre, as the decode step cuts it."""
    assert crop.box(*size) == box

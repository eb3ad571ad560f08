import os
import zipfile
from pathlib import Path

import pytest

from fruitstand.errors import DataError
from training.data.file_tree import open_tree


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_folder_and_its_zip_list_and_read_the_same(tmp_path: Path) -> None:
    """Nothing depends on how the data came; a file system's own notes are not data."""
    members = {"set/Training/Äpfel Nr 1/0_100.jpg": b"one", "set/Test/Äpfel Nr 1/3_100.jpg": b"two"}
    noise = {"__MACOSX/set/Training/a/._0_100.jpg": b"x", "set/Test/.DS_Store": b"x"}
    for name, content in (members | noise).items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    archive = _zip(tmp_path / "tree.zip", members | noise)
    listings = []
    for source in (tmp_path / "tree", archive):
        with open_tree(source) as tree:
            listing = tree.listing()
            listings.append((sorted(listing.files), sorted(listing.folders)))
            assert {name: tree.read(name, 100) for name in listing.files} == members
    assert listings[0] == listings[1]


def test_a_zip_whose_names_begin_with_a_dot_is_the_same_tree(tmp_path: Path) -> None:
    """Some programs write them so."""
    archive = _zip(tmp_path / "tree.zip", {"./": b"", "./Training/": b"", "./Training/a//0_100.jpg": b"one"})
    with open_tree(archive) as tree:
        assert tree.listing().files == ["Training/a/0_100.jpg"]
        assert tree.listing().folders == ["", "Training", "Training/a"]
        assert tree.read("Training/a/0_100.jpg", 100) == b"one"


def test_no_more_of_a_file_is_read_than_asked_for(tmp_path: Path) -> None:
    """A huge file costs no memory: one byte too many is enough to refuse it."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "big.jpg").write_bytes(bytes(5000))
    archive = _zip(tmp_path / "tree.zip", {"big.jpg": bytes(5000)})
    for source in (tmp_path / "tree", archive):
        with open_tree(source) as tree:
            assert len(tree.read("big.jpg", 1000)) == 1001


@pytest.mark.parametrize(
    "target", [pytest.param("..", id="to_its_parent"), pytest.param("loop", id="to_itself")]
)
def test_a_symlink_loop_is_refused(target: str, tmp_path: Path) -> None:
    """It would be walked for ever."""
    folder = tmp_path / "tree" / "Training"
    folder.mkdir(parents=True)
    (folder / "loop").symlink_to(target)
    with open_tree(tmp_path / "tree") as tree, pytest.raises(DataError, match="loop") as caught:
        tree.listing()
    assert "\n" not in str(caught.value)


def test_links_to_folders_and_files_are_followed_and_pipes_are_not_opened(tmp_path: Path) -> None:
    """Data often lie elsewhere; a pipe would be waited on for ever."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0_100.jpg").write_bytes(b"one")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "Apple").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "broken.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "tree" / "pipe.jpg")
    with open_tree(tmp_path / "tree") as tree:
        assert tree.listing().files == ["Apple/0_100.jpg", "broken.jpg"]
        assert tree.read("Apple/0_100.jpg", 100) == b"one"
        with pytest.raises(OSError, match="No such file"):
            tree.read("broken.jpg", 100)


@pytest.mark.parametrize("name", ["../escaped.jpg", "/escaped.jpg", "a/../../escaped.jpg", "..\\escaped.jpg"])
def test_a_zip_that_points_outside_is_refused(name: str, tmp_path: Path) -> None:
    """Before anything of it is read."""
    archive = _zip(tmp_path / "tree.zip", {"Training/Apple/0_100.jpg": b"one", name: b"x"})
    with pytest.raises(DataError, match="points outside"):
        open_tree(archive)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        pytest.param(0.5, "neither a folder nor a readable zip", id="half_of_it"),
        pytest.param(0.0, "neither a folder nor a readable zip", id="nothing_of_it"),
    ],
)
def test_a_truncated_download_is_one_clear_line(keep: float, says: str, tmp_path: Path) -> None:
    """A zip's table of contents is at its end, so no part of a cut-off one is taken."""
    archive = _zip(tmp_path / "tree.zip", {f"{n}.jpg": os.urandom(500) for n in range(20)})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=says) as caught:
        open_tree(archive)
    assert "download it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_zip_damaged_inside_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    """One flipped byte in a stored file."""
    archive = _zip(tmp_path / "tree.zip", {"a.jpg": b"A" * 100})
    archive.write_bytes(archive.read_bytes().replace(b"A" * 100, b"A" * 99 + b"B"))
    with open_tree(archive) as tree, pytest.raises(DataError, match=r"a\.jpg cannot be unpacked .*CRC"):
        tree.read("a.jpg", 100)

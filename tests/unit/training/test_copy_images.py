import os
import shutil
import threading
from pathlib import Path

import pytest

from fruitstand.errors import DataError
from training.data import copy_images as module
from training.data.class_folders import find_images
from training.data.copy_images import copy_images
from training.data.file_tree import open_tree
from training.data.painter import paint_dataset


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip with a painted tree of 64 images, one of them damaged."""
    folder = tmp_path_factory.mktemp("archive")
    tree = paint_dataset(folder, num_classes=2, images_per_class=32, seed=1)
    victim = sorted(tree.rglob("*.jpg"))[5]
    victim.write_bytes(victim.read_bytes()[:300])
    return Path(shutil.make_archive(str(folder / "tree"), "zip", tree))


def test_many_processes_do_what_one_does(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows in the same order, the same bytes, the same complaint."""
    with open_tree(archive) as tree:
        found = find_images(tree.listing())
    alone = copy_images(archive, found, tmp_path / "alone")
    monkeypatch.setattr(module, "MIN_POOLED", 1)
    monkeypatch.setattr(module, "CHUNK", 5)
    pooled = copy_images(archive, found, tmp_path / "pooled")
    rows, thumbnails, skipped, converted = alone
    assert (pooled[0], pooled[2]) == (rows, skipped)
    assert (pooled[1] == thumbnails).all()
    assert (len(rows), len(skipped), converted) == (63, 1, {})
    for row in rows:
        assert (tmp_path / "pooled" / row.path).read_bytes() == (tmp_path / "alone" / row.path).read_bytes()


def test_processes_are_forked_before_the_progress_bar_has_its_thread(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that the thread holds would stay locked in the process for ever."""
    fork, threads, before = os.fork, [], threading.active_count()

    def counting_fork() -> int:
        threads.append(threading.active_count())
        return fork()

    with open_tree(archive) as tree:
        found = find_images(tree.listing())
    monkeypatch.setattr(os, "fork", counting_fork)
    monkeypatch.setattr(module, "MIN_POOLED", 1)
    monkeypatch.setenv("FORCE_COLOR", "1")  # for Rich, stderr is a terminal then
    copy_images(archive, found, tmp_path / "out")
    assert set(threads) == {before}


def test_a_zip_damaged_inside_stops_all_processes(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download to repeat, not images to skip; the error crosses from the process that met it."""
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content)
    with open_tree(damaged) as tree:
        found = find_images(tree.listing())
    monkeypatch.setattr(module, "MIN_POOLED", 1)
    with pytest.raises(DataError, match=r"cannot be unpacked .*download it again"):
        copy_images(damaged, found, tmp_path / "out")

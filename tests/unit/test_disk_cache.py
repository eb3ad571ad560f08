"""Folders that tests share are made once, and again when they are not whole."""

import multiprocessing
from pathlib import Path

import pytest

from tests.disk_cache import NUM_KEPT, built_once

SOURCES = ("tests/disk_cache.py",)


def _write(folder: Path) -> None:
    with (folder.parent / "builds").open("a") as file:
        file.write(".")
    (folder / "part").mkdir()
    (folder / "part" / "numbers.txt").write_text("1 2 3")


def _build(cache: Path) -> Path:
    return built_once("numbers", _write, sources=SOURCES, cache=cache)


def _num_builds(cache: Path) -> int:
    return len((cache / "builds").read_text())


def test_a_folder_is_made_once_however_many_ask_at_once(tmp_path: Path) -> None:
    """Processes wait for the one that builds, and get the same path."""
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        paths = pool.map(_build, [tmp_path] * 8)
    assert len(set(paths)) == 1
    assert _num_builds(tmp_path) == 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "part" / "numbers.txt").write_text("1 2 4"), id="altered"),
        pytest.param(lambda folder: (folder / "part" / "numbers.txt").unlink(), id="missing"),
        pytest.param(lambda folder: folder.with_name(f"{folder.name}.json").unlink(), id="half_built"),
        pytest.param(lambda folder: folder.with_name(f"{folder.name}.json").write_text("{"), id="no_list"),
    ],
)
def test_a_damaged_folder_is_made_again(damage, tmp_path: Path) -> None:
    """Nobody starts from half of it."""
    damage(_build(tmp_path))
    assert (_build(tmp_path) / "part" / "numbers.txt").read_text() == "1 2 3"
    assert _num_builds(tmp_path) == 2


def test_a_build_that_fails_leaves_nothing_to_start_from(tmp_path: Path) -> None:
    """The next caller builds."""

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        built_once("numbers", fail, sources=SOURCES, cache=tmp_path)
    path = _build(tmp_path)
    assert [one.name for one in path.iterdir()] == ["part"]


def test_other_code_and_other_ingredients_are_another_folder(tmp_path: Path) -> None:
    """And old folders go, so that a cache does not grow with every change."""
    first = _build(tmp_path)
    other = built_once("numbers", _write, sources=("tests/conftest.py",), cache=tmp_path)
    assert other != first
    third = built_once("numbers", _write, sources=SOURCES, ingredients=[first], cache=tmp_path)
    assert third not in (first, other)
    assert not first.exists()
    assert len([one for one in tmp_path.iterdir() if one.is_dir()]) == NUM_KEPT

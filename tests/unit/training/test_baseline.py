import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from fruitstand.errors import DataError
from fruitstand.manifest import PreparedData
from training.data import neighbours as module
from training.data.neighbours import nearest_neighbours
from training.data.thumbnails import brightness, thumbnails
from training.evaluate.baseline import find_baseline


def _levels(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 432), dtype=np.uint8)


def test_the_nearest_is_that_of_comparing_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the bounds of the blocks; of equals the first; itself left out where that is asked for."""
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(module, "REFERENCES_AT_ONCE", 10)
    references = _levels(45, 0)
    references[33] = references[4]
    queries = np.concatenate([_levels(20, 1), references[[33]]])
    squares = ((queries[:, None].astype(np.int64) - references[None]) ** 2).sum(axis=2)
    found = nearest_neighbours(queries, references)
    assert found.tolist() == squares.argmin(axis=1).tolist()
    assert found[-1] == 4
    others = nearest_neighbours(references, references, excluded=np.arange(45))
    squares = ((references[:, None].astype(np.int64) - references[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squares, squares.max() + 1)
    assert others.tolist() == squares.argmin(axis=1).tolist()
    assert (others[4], others[33]) == (33, 4)


def test_memory_does_not_grow_with_the_data() -> None:
    """A table of all distances would take 384 MB here, all images as floats 35 MB."""
    queries, references = _levels(4_800, 0), _levels(20_000, 1)
    nearest_neighbours(queries[:10], references[:10])  # what the first call imports is no part of it
    tracemalloc.start()
    try:
        nearest_neighbours(queries, references)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    blocks = 4 * (module.QUERIES_AT_ONCE * module.REFERENCES_AT_ONCE + 2 * module.REFERENCES_AT_ONCE * 432)
    assert peak < 2.5 * blocks


def test_painted_classes_are_found_by_their_neighbours(prepared: PreparedData) -> None:
    """The Test of neighbouring frames needs no training, as in Fruits-360."""
    small = thumbnails(prepared)
    found = find_baseline(prepared, "test", small)
    truth = [row.label for row in prepared.split("test")]
    assert found.nearest == truth
    assert found.num_train == len(prepared.split("train"))
    rows = [row for row in prepared.rows if row.label != prepared.labels[2] or row.split != "train"]
    kept = np.array([row in rows for row in prepared.rows])
    without = find_baseline(replace(prepared, rows=rows), "test", small[kept])
    assert prepared.labels[2] not in without.nearest
    assert without.majority == prepared.labels[0]


def test_an_image_of_train_is_not_its_own_neighbour(prepared: PreparedData) -> None:
    """Else the baseline of the train split would be 1 by construction."""
    small = thumbnails(prepared).copy()
    train = [index for index, row in enumerate(prepared.rows) if row.split == "train"]
    other = next(index for index in train if prepared.rows[index].label == prepared.labels[1])
    small[train[0]] = small[other]
    found = find_baseline(prepared, "train", small)
    assert prepared.rows[train[0]].label == prepared.labels[0]
    assert found.nearest[0] == prepared.labels[1]


def test_data_without_a_train_split_are_refused(prepared: PreparedData) -> None:
    """There is nothing to compare with."""
    data = replace(prepared, rows=prepared.split("test"))
    with pytest.raises(DataError, match="no train split"):
        find_baseline(data, "test", thumbnails(prepared)[: len(data.rows)])


def test_thumbnails_are_made_once(prepared: PreparedData) -> None:
    """The second call reads what the first has kept, for this manifest only."""
    first = np.array(thumbnails(prepared))
    path = prepared.directory / "cache" / f"thumbnails-{prepared.manifest_sha256[:16]}.npy"
    before = path.stat().st_mtime_ns
    assert np.array_equal(thumbnails(prepared), first)
    assert path.stat().st_mtime_ns == before
    assert first.shape == (len(prepared.rows), 432)


def test_brightness_is_that_of_the_fruit_alone() -> None:
    """However little of the picture it fills; a picture of nothing is white."""
    small = np.full((3, 144, 3), 255, np.uint8)
    small[0, :10] = 40
    small[1, :100] = 40
    assert brightness(small.reshape(3, 432)).tolist() == pytest.approx([40, 40, 255], abs=0.01)

import tracemalloc

import numpy as np
import pytest

from training.data.check.near_duplicates import MAX_DIFFERENCE, find_near_duplicates
from training.data.check.survey import Look, Survey
from training.data.neighbours import close_pairs


def _hashes(num: int, seed: int = 0) -> np.ndarray:
    """Random hashes, every tenth a copy of the one before with up to seven bits turned."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << 64, num, dtype=np.uint64)
    for index in range(9, num, 10):
        flips = np.bitwise_or.reduce(
            np.uint64(1) << rng.integers(0, 64, index // 10 % 8, dtype=np.uint64), initial=0
        )
        hashes[index] = hashes[index - 1] ^ np.uint64(flips)
    return hashes


@pytest.mark.parametrize("max_distance", [0, 3, 6])
def test_every_close_pair_is_found_once(max_distance: int) -> None:
    """As comparing each with each does, over the bounds of the blocks."""
    hashes = _hashes(2500)
    found = {}
    for first, second, distance in close_pairs(hashes, max_distance):
        for one, other, bits in zip(first.tolist(), second.tolist(), distance.tolist(), strict=True):
            key = (min(one, other), max(one, other))
            assert key not in found
            found[key] = bits
    expected = {}
    for one in range(len(hashes)):
        bits = np.unpackbits((hashes[one] ^ hashes[one + 1 :]).view(np.uint8).reshape(-1, 8), axis=1).sum(
            axis=1
        )
        for at in np.flatnonzero(bits <= max_distance):
            expected[one, one + 1 + int(at)] = int(bits[at])
    assert found == expected
    assert len(found) > 20


def test_the_search_holds_no_table_of_all_pairs() -> None:
    """16,000 images have 128 million pairs; the memory is that of a few blocks."""
    hashes = _hashes(16_000)
    tracemalloc.start()
    try:
        count = sum(len(first) for first, _, _ in close_pairs(hashes, 6))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 1000
    assert peak < 40 * 2**20


def _survey(thumbnails: np.ndarray, hashes: list[int], unreadable: tuple[int, ...] = ()) -> Survey:
    looks = [None if i in unreadable else Look("JPEG", "RGB", 100, 100, 1) for i in range(len(hashes))]
    return Survey(looks, {}, np.array(hashes, np.uint64), thumbnails)


def test_pairs_are_counted_by_split_and_group_and_the_closest_are_kept() -> None:
    """Images 0 to 3 show the same; 4 has their hash and another colour; 5 cannot be read."""
    thumbnails = np.zeros((6, 8, 9, 3), np.uint8)
    thumbnails[1], thumbnails[2] = 1, 3
    thumbnails[4, :, :, 0] = 200
    found = find_near_duplicates(
        _survey(thumbnails, [7, 7, 5, 7, 7, 7], unreadable=(5,)),
        splits=["train", "train", "val", "test", "test", "test"],
        groups=[0, 0, 0, 1, 1, 1],
        num_groups=2,
    )
    assert found.num_pairs.tolist() == [[1, 2, 2], [0, 0, 1], [0, 0, 0]]
    assert found.in_split[3].tolist() == [True, True, False]
    assert not found.in_split[[4, 5]].any()
    assert found.in_group[:, 1].tolist() == [True, True, True, False, False, False]
    leak = found.closest_leaks[1]
    assert (leak.first, leak.second, leak.distance, leak.difference) == (3, 0, 0, 0.0)
    pair = found.closest_groups[0, 1]
    assert (pair.first, pair.second) == (0, 3)


def test_colour_tells_apart_what_the_hash_does_not() -> None:
    """Just under and just over the allowed difference."""
    thumbnails = np.zeros((3, 8, 9, 3), np.uint8)
    thumbnails[1], thumbnails[2] = int(MAX_DIFFERENCE), 2 * int(MAX_DIFFERENCE) + 2
    found = find_near_duplicates(
        _survey(thumbnails, [1, 1, 1]), splits=["train"] * 3, groups=[0] * 3, num_groups=1
    )
    assert found.num_pairs[0, 0] == 1

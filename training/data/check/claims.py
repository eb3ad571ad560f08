"""What a split claims, and whether it is true.

    classic   nothing about films: Test is cut from the films of Training, and the check says how much.
    object    no variety of Test is in Training or validation.
    film      no film of Test is in Training or validation.

For object and film the same holds between Training and validation, save for the classes whose validation is
the middle of a film or single frames, which the manifest names; and no file of Test may stand in Training or
validation byte for byte. random claims that no file is in two splits.
"""

from collections import defaultdict
from itertools import combinations

from fruitstand.manifest import ManifestRow, PreparedData
from training.data.class_folders import SPLITS
from training.data.splits import Unit, file_of, film_of, variety_of

CLAIMED_UNITS: dict[str, tuple[str, Unit]] = {
    "object": ("varieties", variety_of),
    "film": ("films", film_of),
    "random": ("files", file_of),
}
NUM_NAMED = 5


def shared(rows: list[ManifestRow], unit: Unit) -> dict[str, list[str]]:
    """For each two splits, as "train/test", the names of what stands in both, sorted."""
    inside: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for row in rows:
        inside[row.split].add(unit(row))
    return {
        f"{one}/{other}": sorted(" ".join(name).strip() for name in inside[one] & inside[other])
        for one, other in combinations(SPLITS, 2)
    }


def shared_files(rows: list[ManifestRow]) -> dict[str, int]:
    """For each two splits the number of different files that stand in both."""
    return {pair: len(names) for pair, names in shared(rows, file_of).items()}


def broken_claims(data: PreparedData) -> list[str]:
    """What the split claims and does not keep, a sentence each."""
    if data.split_kind not in CLAIMED_UNITS:
        return []
    what, unit = CLAIMED_UNITS[data.split_kind]
    excused = set(data.split_details.get("validation_blocks", []))
    broken = []
    for pair, names in shared(data.rows, unit).items():
        if pair == "train/val":
            names = shared([row for row in data.rows if row.label not in excused], unit)[pair]
        if names:
            broken.append(
                f"split {data.split_kind!r} claims that no {what} are shared; {len(names)} are, between"
                f" {pair}: {_some(names)}"
            )
    for pair, count in shared_files(data.rows).items():
        if count and pair != "train/val" and unit is not file_of:
            broken.append(
                f"split {data.split_kind!r} claims an unseen test; {count} files stand byte for byte in"
                f" {pair}"
            )
    return broken


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more

"""Check what a split claims.

    classic   claims nothing about films: Test is cut from the films of Training; the check reports the
              overlap.
    object    no variety of Test is in Training or validation.
    film      no film of Test is in Training or validation.
    random    no file is in two splits.

object and film also claim this between Training and validation, except for the classes that the manifest
lists in `validation_blocks`: their validation is the middle of a film or single frames. They claim, too, that
no file of Test is in Training or validation byte for byte.
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
    """For each pair of splits, such as "train/test", the sorted names of the units that are in both."""
    inside: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for row in rows:
        inside[row.split].add(unit(row))
    return {
        f"{one}/{other}": sorted(" ".join(name).strip() for name in inside[one] & inside[other])
        for one, other in combinations(SPLITS, 2)
    }


def shared_files(rows: list[ManifestRow]) -> dict[str, int]:
    """For each pair of splits, the number of different files that are in both."""
    return {pair: len(names) for pair, names in shared(rows, file_of).items()}


def broken_claims(data: PreparedData) -> list[str]:
    """One sentence for each claim of the split that does not hold."""
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
                f"split {data.split_kind!r} claims unseen test images; {count} files are byte for byte in"
                f" both of {pair}"
            )
    return broken


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more

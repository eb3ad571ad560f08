"""Split images into training, validation and test: `--split classic`, `object` or `film`.

    classic   Test is the data set's own. It comes from the same films as Training, so its accuracy compares
              with published figures but says little about new fruit.
    object    Test holds whole varieties: the data set's own Test if it does that, else one variety in five of
              each fruit. The classes are the fruits.
    film      Test holds whole films: one in four of each class.

With --split classic, a source without a Test of its own is split like film if the file names of every class
show series of images ("patient07_003.jpg"; sub-folders count too), else image by image:

    random    Test holds one image in five of each class; files with equal bytes stay together.

Validation is a tenth of the remaining images, whole varieties or films if a class has enough of them.
Otherwise it is the middle tenth of each film, and a few frames on both sides are left out. It is not the end
of the film: films are a little longer than a turn, so the last frames show the same side as the first ones.

`--validation frame` takes one frame in ten instead. Its neighbours are in Training, as with the classic Test,
but Training keeps every variety, every film and every part of the turn.

Equal seed and data give an equal split: varieties and films are ordered by a hash of seed and name.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from fruitstand.manifest import ManifestRow
from training.data.class_folders import SPLITS

SPLIT_KINDS = ("classic", "object", "film")
VALIDATION_KINDS = ("film", "frame")

VALIDATION_SHARE = 0.1
TEST_SHARE = {"object": 0.2, "film": 0.25, "random": 0.2}
MIN_UNITS = {"object": 3, "film": 5, "random": 5}
"""A class with fewer varieties or films would lose too many training images to a whole one for validation."""
MAX_SERIES_SHARE = 0.75
"""A series with a larger share of a class's images does not count: its files merely share a base name."""
MAX_GAP = 5
"""Frames left out on each side of a validation block; at most a twentieth of the film."""

Unit = Callable[[ManifestRow], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Division:
    """The result of a split."""

    rows: list[ManifestRow]
    """Ordered by split, object, film and frame."""
    kind: str
    """What the split claims: classic, object, film or random."""
    details: dict[str, object]
    """How the rows were split, for manifest and report."""


def variety_of(row: ManifestRow) -> tuple[str, ...]:
    """Key of the photographed object."""
    return (row.object,)


def film_of(row: ManifestRow) -> tuple[str, ...]:
    """Key of one turn of one object."""
    return (row.object, row.film)


def file_of(row: ManifestRow) -> tuple[str, ...]:
    """Key of one file's content."""
    return (row.sha256,)


UNITS: dict[str, Unit] = {"classic": film_of, "object": variety_of, "film": film_of, "random": file_of}


def divide(rows: Iterable[ManifestRow], *, kind: str, seed: int, validation: str = "film") -> Division:
    """Assign every image to a split."""
    rows = list(rows)
    left_out: list[str] = []
    test = "the data set's own"
    has_test = any(row.split == "test" for row in rows)
    if kind == "classic" and not has_test and any(row.split == "val" for row in rows):
        rows = [replace(row, split="test") if row.split == "val" else row for row in rows]
        has_test, test = True, "the data set's own validation images"
    without_test = "" if has_test else ", because the data set has no Test of its own"
    if kind == "classic" and not has_test:
        kind = "film" if _shows_series(rows) else "random"
        if kind == "random":
            rows = [replace(row, film=PurePosixPath(row.path).name, frame=0) for row in rows]
    unit = UNITS[kind]
    if kind in ("film", "random") or (kind == "object" and not (has_test and _is_disjoint(rows, unit))):
        rows, left_out = _with_test(rows, kind=kind, unit=unit, seed=seed)
        held_out = {"film": "whole films", "random": "one image in five", "object": "whole varieties"}[kind]
        test = held_out + without_test
    details: dict[str, object] = {"seed": seed, "test": test, "left_out": left_out}
    if any(row.split == "val" for row in rows):
        details |= {"validation": "the data set's own", "validation_blocks": [], "num_gap": 0}
    elif validation == "frame":
        # Single frames void the claim between train and validation, so list every class as an exception.
        blocks = [] if kind == "classic" else sorted({row.label for row in rows})
        details |= {"validation": "one frame in ten", "validation_blocks": blocks, "num_gap": 0}
        rows = _with_every_tenth(rows)
    else:
        num_before = len(rows)
        rows, blocks = _with_validation(rows, kind=kind, unit=unit, seed=seed)
        whole = {"object": "whole varieties", "random": "one image in ten"}.get(kind, "whole films")
        middle = "the middle of each film"
        if len(blocks) == len({row.label for row in rows}):
            details["validation"] = middle
        else:
            details["validation"] = whole + (f", but {middle} for {len(blocks)} classes" if blocks else "")
        details["validation_blocks"] = blocks
        details["num_gap"] = num_before - len(rows)
    rows.sort(key=_order)
    return Division(rows, kind, details)


def _shows_series(rows: list[ManifestRow]) -> bool:
    """Whether every class has several films with a mean of two or more images."""
    for members in _by_label(rows).values():
        sizes = Counter(film_of(row) for row in members)
        largest = max(sizes.values())
        if not 2 <= len(sizes) <= len(members) / 2 or largest > MAX_SERIES_SHARE * len(members):
            return False
    return True


def _is_disjoint(rows: list[ManifestRow], unit: Unit) -> bool:
    units = defaultdict(set)
    for row in rows:
        units[unit(row)].add(row.split)
    return all(len(splits) == 1 for splits in units.values())


def _with_test(
    rows: list[ManifestRow], *, kind: str, unit: Unit, seed: int
) -> tuple[list[ManifestRow], list[str]]:
    """Hold out whole units of each class; return the rows, and the classes with only one unit."""
    result, left_out = [], []
    for label, members in _by_label(rows).items():
        units = _shuffled({unit(row) for row in members}, seed)
        if len(units) == 1:
            if kind == "random":  # the caller reports that the class has too few images
                result += members
            else:
                left_out.append(label)
            continue
        held_out = set(units[: max(1, round(TEST_SHARE[kind] * len(units)))])
        result += [replace(row, split="test" if unit(row) in held_out else "train") for row in members]
    return result, left_out


def _with_validation(
    rows: list[ManifestRow], *, kind: str, unit: Unit, seed: int
) -> tuple[list[ManifestRow], list[str]]:
    """Take a tenth of Training; return the rows, and the classes too small to hold out whole units."""
    result = [row for row in rows if row.split == "test"]
    blocks = []
    for label, members in _by_label(row for row in rows if row.split == "train").items():
        units = _shuffled({unit(row) for row in members}, seed)
        if len(units) >= MIN_UNITS.get(kind, MIN_UNITS["film"]):
            held_out = set(units[: max(1, round(VALIDATION_SHARE * len(units)))])
            result += [replace(row, split="val") if unit(row) in held_out else row for row in members]
        else:
            result += _cut_blocks(members)
            blocks.append(label)
    return result, blocks


def _with_every_tenth(rows: list[ManifestRow]) -> list[ManifestRow]:
    """Take the second of every ten training frames, so that a class of two images gets one in each split."""
    result = [row for row in rows if row.split == "test"]
    for members in _by_label(row for row in rows if row.split == "train").values():
        ordered = sorted(members, key=_order)
        result += [
            replace(row, split="val") if number % 10 == 1 else row for number, row in enumerate(ordered)
        ]
    return result


def _order(row: ManifestRow) -> tuple[int, str, str, int, str]:
    return SPLITS.index(row.split), row.object, row.film, row.frame, row.path


def _cut_blocks(members: list[ManifestRow]) -> list[ManifestRow]:
    """Take the middle tenth of each film for validation, and leave out the frames next to it."""
    films: dict[tuple[str, ...], list[ManifestRow]] = defaultdict(list)
    for row in sorted(members, key=_order):
        films[film_of(row)].append(row)
    train, val = [], []
    for film in films.values():
        size = round(VALIDATION_SHARE * len(film) + 0.01)  # rounds .5 up, so that five frames give one
        gap = min(MAX_GAP, len(film) // 20) if size else 0
        start = (len(film) - size) // 2
        train += film[: start - gap] + film[start + size + gap :]
        val += film[start : start + size]
    if not val and len(train) > 1:
        val.append(train.pop())
    return train + [replace(row, split="val") for row in val]


def _by_label(rows: Iterable[ManifestRow]) -> dict[str, list[ManifestRow]]:
    members: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        members[row.label].append(row)
    return dict(sorted(members.items()))


def _shuffled(units: set[tuple[str, ...]], seed: int) -> list[tuple[str, ...]]:
    return sorted(units, key=lambda unit: hashlib.sha256("\0".join((str(seed), *unit)).encode()).digest())

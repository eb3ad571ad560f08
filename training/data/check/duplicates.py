"""Report exact and near duplicates between splits and between objects."""

from collections import defaultdict
from dataclasses import dataclass

from fruitstand.manifest import ManifestRow, PreparedData
from training.data.check.claims import shared_files
from training.data.check.near_duplicates import MAX_DIFFERENCE, MAX_DISTANCE, NearDuplicates, Pair
from training.data.check.survey import MAX_LISTED
from training.data.class_folders import SPLITS

TWIN_SHARE = 0.5
"""Two objects count as twins if this share of one's images has a near duplicate in the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDuplicates:
    """Files that are in a prepared folder more than once, byte for byte."""

    num_files_repeated: int
    num_in_two_classes: int
    shared: dict[str, int]
    """Number of different files in both splits of a pair such as "train/test"."""
    groups: list[list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class NearReport:
    """Number of near duplicates between the splits, and the share of Test that has one outside of it."""

    max_distance_bits: int
    max_difference_levels: float
    num_pairs: dict[str, int]
    """Number of near-duplicate pairs for each pair of splits such as "train/test"."""
    num_test_images_near_training: int
    share_of_test: float
    """0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Two images that are nearly the same."""

    files: list[str]
    distance_bits: int
    difference_levels: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Twin:
    """Two objects that show the same fruit."""

    objects: list[str]
    classes: list[str]
    splits: list[list[str]]
    """The splits of each object."""
    shares: list[float]
    """For each object, the share of its images with a near duplicate in the other, 0 to 1."""
    example: Example


def exact_duplicates(rows: list[ManifestRow]) -> ExactDuplicates:
    """Find files that occur more than once, byte for byte."""
    groups: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        groups[row.sha256].append(row)
    repeated = [members for members in groups.values() if len(members) > 1]
    return ExactDuplicates(
        num_files_repeated=len(repeated),
        num_in_two_classes=sum(len({row.label for row in members}) > 1 for members in repeated),
        shared=shared_files(rows),
        groups=[[row.path for row in members] for members in repeated[:MAX_LISTED]],
    )


def near_report(data: PreparedData, near: NearDuplicates) -> NearReport:
    """Count the pairs between splits, and the test images with a near duplicate in Training or validation."""
    test = [index for index, row in enumerate(data.rows) if row.split == "test"]
    leaked = near.in_split[test][:, [SPLITS.index("train"), SPLITS.index("val")]].any(axis=1)
    return NearReport(
        max_distance_bits=MAX_DISTANCE,
        max_difference_levels=MAX_DIFFERENCE,
        num_pairs={
            f"{one}/{other}": int(near.num_pairs[i, j])
            for i, one in enumerate(SPLITS)
            for j, other in enumerate(SPLITS)
            if i <= j
        },
        num_test_images_near_training=int(leaked.sum()),
        share_of_test=round(float(leaked.mean()), 4) if test else 0.0,
    )


def twin_objects(data: PreparedData, near: NearDuplicates, objects: list[str]) -> list[Twin]:
    """Find pairs of objects that show the same fruit, by the share of images with a near duplicate."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(data.rows):
        members[row.object].append(index)
    twins = []
    for (first, second), pair in near.closest_groups.items():
        one, other = objects[first], objects[second]
        shares = (
            float(near.in_group[members[one], second].mean()),
            float(near.in_group[members[other], first].mean()),
        )
        if max(shares) >= TWIN_SHARE:
            twins.append(
                Twin(
                    objects=[one, other],
                    classes=[data.rows[pair.first].label, data.rows[pair.second].label],
                    splits=[
                        sorted({data.rows[i].split for i in members[name]}, key=SPLITS.index)
                        for name in (one, other)
                    ],
                    shares=[round(share, 4) for share in shares],
                    example=_example(data, pair),
                )
            )
    return sorted(twins, key=lambda twin: (-max(twin.shares), twin.objects))


def closest_leaks(data: PreparedData, near: NearDuplicates) -> list[Example]:
    """For each object, the test image that is closest to an image outside Test; the closest first."""
    pairs = sorted(near.closest_leaks.values(), key=lambda pair: pair.difference)
    return [_example(data, pair) for pair in pairs[:MAX_LISTED]]


def _example(data: PreparedData, pair: Pair) -> Example:
    return Example(
        files=[data.rows[pair.first].path, data.rows[pair.second].path],
        distance_bits=pair.distance,
        difference_levels=round(pair.difference, 2),
    )

"""`fruitstand data prepare`: copy the images, split them, and write labels, manifest and report."""

import contextlib
import errno
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fruitstand.artefacts import atomic_directory, sweep_temporaries, write_json
from fruitstand.errors import ArtefactError, DataError, UsageError
from fruitstand.labels import check_labels, write_labels
from fruitstand.manifest import LABELS_NAME, REPORT_NAME, ManifestRow, write_manifest
from training.data import kaggle
from training.data.class_folders import find_images
from training.data.copy_images import copy_images
from training.data.file_tree import Listing, open_tree
from training.data.painter import paint_dataset
from training.data.splits import SPLIT_KINDS, VALIDATION_KINDS, divide
from training.data.tables import SUFFIXES, find_listed, find_tables
from training.data.twins import find_same_films, without_twins

MAX_NAMED = 5
"""Classes listed in an error message."""


def prepare_data(
    *,
    source: str,
    out: Path,
    split: str = "classic",
    validation: str = "film",
    subset: str = "",
    label_level: str = "fruit",
    num_classes: int = 12,
    images_per_class: int = 200,
    seed: int = 0,
) -> dict[str, object]:
    """Prepare a folder that `fruitstand train` reads; the options are those of `fruitstand data prepare`.

    Returns:
        The content of `report.json`.

    Raises:
        DataError: nothing usable in the source, a class without training images, or a full disk.
        ArtefactError: `out` exists.
        UsageError: an unknown split, or `split="object"` with varieties as classes.
    """
    _check_choices(split, validation, label_level)
    sweep_temporaries(out.parent)
    # Painted images go into the staged folder, so that after a kill they are removed with it.
    with (
        _full_disk_translated(out),
        atomic_directory(out) as staged,
        TemporaryDirectory(dir=staged) as scratch,
    ):
        if source == "generated":
            path, name = Path(scratch), source
            paint_dataset(path, num_classes=num_classes, images_per_class=images_per_class, seed=seed)
        elif source == "kaggle":
            path, name = kaggle.download(), kaggle.KAGGLE_HANDLE
            subset = subset or kaggle.KAGGLE_SUBSET
        else:
            path, name = Path(source), Path(source).resolve().name
        report: dict[str, object] = {"source": name, "generated": source == "generated"}
        choices = {"validation": validation, "subset": subset, "label_level": label_level, "seed": seed}
        report |= _arrange(path, staged, split=split, **choices)
        write_json(staged / REPORT_NAME, report)
    return report


@contextlib.contextmanager
def _full_disk_translated(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{out}: the disk is full; nothing was written; free some space or choose another --out"
        ) from exc


def _check_choices(split: str, validation: str, label_level: str) -> None:
    if split not in SPLIT_KINDS:
        raise UsageError(f"--split: got {split!r}, allowed {', '.join(SPLIT_KINDS)}")
    if split == "object" and label_level == "variety":
        raise UsageError("--split object holds out whole varieties; use it with --label-level fruit")
    if validation not in VALIDATION_KINDS:
        raise UsageError(f"--validation: got {validation!r}, allowed {', '.join(VALIDATION_KINDS)}")


def _arrange(
    path: Path, staged: Path, *, split: str, validation: str, subset: str, label_level: str, seed: int
) -> dict[str, object]:
    """Fill the staged folder; return the report, which is left to the caller to write."""
    table = path.name if path.is_file() and path.suffix.lower() in SUFFIXES else ""
    path = path.parent if table else path
    with open_tree(path) as tree:
        listing = Listing() if table else tree.listing()
        try:
            tables = [table] if table else find_tables(tree, listing)
            found = (
                find_listed(tree, tables)
                if tables
                else find_images(
                    listing, label_level=label_level, group_varieties=split == "object", subset=subset
                )
            )
            check_labels(sorted({image.label for image in found}))
        except (DataError, ArtefactError) as exc:
            raise DataError(f"{path}: {exc}") from exc
    copied, thumbnails, skipped, converted = copy_images(path, found, staged)
    lost = {image.label for image in found} - {row.label for row in copied}
    if lost:
        raise DataError(f"class {min(lost)!r}: none of its images can be decoded; {skipped[0]['reason']}")
    rows, twins = without_twins(copied)
    by_path = {row.path: small for row, small in zip(copied, thumbnails, strict=True)}
    again = find_same_films(np.stack([by_path[row.path] for row in rows]), [row.label for row in rows])
    dropped = {one["label"] for one in again}
    rows = [row for row in rows if row.label not in dropped]
    division = divide(rows, kind=split, seed=seed, validation=validation)
    labels = _checked_labels(division.rows)
    for unused in {row.path for row in copied} - {row.path for row in division.rows}:
        (staged / unused).unlink()
    write_labels(staged / LABELS_NAME, labels)
    write_manifest(staged, division.rows, split_kind=division.kind, split_details=division.details)
    return {
        "split_kind": division.kind,
        "split_details": division.details,
        "num_classes": len(labels),
        "num_images": dict(sorted(Counter(row.split for row in division.rows).items())),
        "twins": [*twins, *again],
        "num_skipped": len(skipped),
        "skipped": skipped,
        "converted_from": converted,
        "images_per_class": _per_class(division.rows),
        "label_level": label_level,
        "subset": subset,
        "seed": seed,
    }


def _per_class(rows: list[ManifestRow]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.label][row.split] += 1
    return dict(sorted(counts.items()))


def _checked_labels(rows: list[ManifestRow]) -> list[str]:
    counts = _per_class(rows)
    untrained = [label for label, count in counts.items() if count["train"] + count["val"] == 0]
    untested = [label for label, count in counts.items() if count["test"] == 0]
    if untrained:
        renamed = f" (only in Training: {_names(untested)}; perhaps renamed)" if untested else ""
        raise DataError(
            f"class {_names(untrained)} is in Test but not in Training{renamed}; remove it, rename it or add"
            " training images"
        )
    for label, count in counts.items():
        if count["train"] == 0 or count["val"] == 0:
            raise DataError(
                f"class {label!r} has {count['train']} training image(s) and {count['val']} for validation;"
                " at least one of each is needed: add images or remove the class"
            )
    if len(counts) < 2:
        only = f"only one class ({next(iter(counts))!r})" if counts else "no class"
        raise DataError(f"{only} can be split this way; a classifier needs at least two classes")
    return list(counts)


def _names(labels: list[str]) -> str:
    shown = ", ".join(map(repr, labels[:MAX_NAMED]))
    return shown + (f" and {len(labels) - MAX_NAMED} more" if len(labels) > MAX_NAMED else "")

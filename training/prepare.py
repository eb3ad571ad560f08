"""`fruitstand data prepare`: arrange images and labels, split them, write the manifest and a report."""

import hashlib
import tempfile
import zipfile
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from fruitstand.artefacts import atomic_directory, sweep_temporaries, write_json
from fruitstand.contract import Preprocessing
from fruitstand.errors import DataError, ImageRejected
from fruitstand.labels import write_labels
from fruitstand.manifest import LABELS_NAME, REPORT_NAME, ManifestRow, write_manifest
from fruitstand.progress import track
from fruitstand.reference_decode import decode_reference
from training.layout import FoundImage, find_images
from training.painter import paint_dataset
from training.twins import find_twins, thumbnail

VALIDATION_EVERY = 10
"""One frame in so many of each film goes from Training to validation when the data brings none."""
NUM_THREADS = 4


def prepare_data(
    *,
    source: str,
    out: Path,
    label_level: str = "fruit",
    num_classes: int = 12,
    images_per_class: int = 200,
    seed: int = 0,
) -> dict[str, object]:
    """Prepare a folder that `fruitstand train` reads.

    Args:
        source: "generated", or the path of a Fruits-360 folder or zip.
        out: the folder to make; must not exist.
        label_level: "fruit" or "variety" for trees that have both levels.
        num_classes: classes to paint (generated only).
        images_per_class: images to paint for each, half of them for the test split (generated only).
        seed: of the painter.

    Returns:
        The report that is also written to `report.json`.

    Raises:
        DataError: nothing usable in the source, or classes that cannot be learned or tested.
        ArtefactError: `out` exists.
    """
    sweep_temporaries(out.parent)
    with tempfile.TemporaryDirectory(prefix="fruitstand-data-") as scratch, atomic_directory(out) as staged:
        if source == "generated":
            tree = paint_dataset(
                Path(scratch), num_classes=num_classes, images_per_class=images_per_class, seed=seed
            )
        else:
            tree = _unpacked(Path(source), Path(scratch))
        found = find_images(tree, label_level=label_level)
        rows, thumbnails, skipped = _copy_images(found, staged)
        lost = {image.label for image in found} - {row.label for row in rows}
        if lost:
            raise DataError(f"class {min(lost)!r}: none of its images can be decoded; {skipped[0]['reason']}")
        twins = find_twins(thumbnails, [row.label for row in rows])
        dropped = {twin.label for twin in twins}
        rows = _with_validation([row for row in rows if row.label not in dropped])
        labels = _checked_labels(rows)
        write_labels(staged / LABELS_NAME, labels)
        write_manifest(staged, rows)
        report = {
            "source": source if source == "generated" else Path(source).resolve().name,
            "generated": source == "generated",
            "num_classes": len(labels),
            "num_images": dict(sorted(Counter(row.split for row in rows).items())),
            "twin_classes": [twin.to_dict() for twin in twins],
            "num_skipped": len(skipped),
            "skipped": skipped,
            "images_per_class": _per_class(rows),
            "label_level": label_level,
            "seed": seed,
        }
        write_json(staged / REPORT_NAME, report)
    return report


def _unpacked(source: Path, scratch: Path) -> Path:
    if not source.exists():
        raise DataError(f"{source}: no such folder or zip")
    if source.is_dir():
        return source
    if not zipfile.is_zipfile(source):
        raise DataError(f"{source}: neither a folder nor a readable zip; download it again")
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            if not (scratch / name).resolve().is_relative_to(scratch.resolve()):
                raise DataError(f"{source}: refuses to unpack {name!r}, it points outside the archive")
        try:
            archive.extractall(scratch)
        # zipfile raises RuntimeError for a password and NotImplementedError for an unknown compression.
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as exc:
            raise DataError(f"{source}: cannot be unpacked ({exc}); download it again") from exc
    return scratch


def _copy_images(
    found: list[FoundImage], staged: Path
) -> tuple[list[ManifestRow], np.ndarray, list[dict[str, str]]]:
    """Copy every image that decodes; return rows and thumbnails and, for the others, file and reason."""
    preprocessing = Preprocessing()

    def copy(image: FoundImage) -> tuple[ManifestRow, np.ndarray] | str:
        try:
            encoded = image.file.read_bytes()
            small = thumbnail(decode_reference(encoded, preprocessing))
        except ImageRejected as exc:
            return str(exc)
        except OSError as exc:
            return f"cannot be read: {exc.strerror}"
        target = "images" / image.relative
        (staged / target).parent.mkdir(parents=True, exist_ok=True)
        (staged / target).write_bytes(encoded)
        digest = hashlib.sha256(encoded).hexdigest()
        row = ManifestRow(
            str(target), digest, image.label, image.object, image.film, image.frame, image.split
        )
        return row, small

    copied, skipped = [], []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for image, result in zip(
            found, track(pool.map(copy, found), total=len(found), description="prepare"), strict=True
        ):
            if isinstance(result, str):
                skipped.append({"file": str(image.relative), "reason": result})
            else:
                copied.append(result)
    if not copied:
        raise DataError(f"none of {len(found)} images can be decoded; the first: {skipped[0]['reason']}")
    rows, thumbnails = zip(*copied, strict=True)
    return list(rows), np.stack(thumbnails), skipped


def _with_validation(rows: list[ManifestRow]) -> list[ManifestRow]:
    """Move one frame in `VALIDATION_EVERY` from train to val, where the data brings no validation split."""
    if any(row.split == "val" for row in rows):
        return rows
    seen: dict[str, int] = defaultdict(int)
    result = []
    for row in rows:
        if row.split == "train":
            # The second of every ten, so that a class of two images still has one of each kind.
            if seen[row.label] % VALIDATION_EVERY == 1:
                result.append(replace(row, split="val"))
            else:
                result.append(row)
            seen[row.label] += 1
        else:
            result.append(row)
    return result


def _per_class(rows: list[ManifestRow]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.label][row.split] += 1
    return dict(sorted(counts.items()))


def _checked_labels(rows: list[ManifestRow]) -> list[str]:
    counts = _per_class(rows)
    for label, count in counts.items():
        if count["train"] + count["val"] == 0:
            raise DataError(
                f"class {label!r} is in Test but not in Training; remove it or add training images"
            )
        if count["train"] == 0 or count["val"] == 0:
            raise DataError(
                f"class {label!r} has {count['train']} training image(s) and {count['val']} for validation;"
                " at least one of each is needed: add images or remove the class"
            )
    if len(counts) < 2:
        raise DataError(f"only one class ({next(iter(counts))!r}) found; a classifier needs at least two")
    return list(counts)

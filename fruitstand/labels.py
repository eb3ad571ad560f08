"""Class names in the order of the model's outputs: one UTF-8 line each, as `label_filename` wants."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fruitstand.artefacts import write_bytes
from fruitstand.errors import ArtefactError


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels that a label file cannot carry.

    Raises:
        ArtefactError: fewer than two, an empty one, a repeated one, or one with a line break.
    """
    if len(labels) < 2:
        raise ArtefactError(f"labels: got {len(labels)}, a classifier needs at least two")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ArtefactError(f"labels: {twice!r} stands there twice")
    bad = next((label for label in labels if not label.strip() or label.splitlines() != [label]), None)
    if bad is not None:
        raise ArtefactError(f"labels: {bad!r} is empty or has a line break")


def labels_text(labels: Sequence[str]) -> str:
    """The label file's content."""
    check_labels(labels)
    return "".join(f"{label}\n" for label in labels)


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """Write the label file atomically."""
    write_bytes(path, labels_text(labels).encode())


def read_labels(path: Path) -> list[str]:
    """Read a label file.

    Raises:
        ArtefactError: the file is missing or not a list of labels.
    """
    try:
        labels = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ArtefactError(f"{path}: cannot read the labels ({exc}); publish the model again") from exc
    if labels[-1] == "":
        labels.pop()
    check_labels(labels)
    return labels


def labels_sha256(labels: Sequence[str]) -> str:
    """Identity of a list of labels and its order, as hex."""
    return hashlib.sha256(labels_text(labels).encode()).hexdigest()

"""Class names in the order of the model's outputs, one UTF-8 line each, as Triton's `label_filename`."""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fruitstand.artefacts import write_bytes
from fruitstand.errors import ArtefactError


def check_labels(labels: Sequence[str]) -> None:
    """Check that a label file can hold the labels.

    All other text reaches the client unchanged: colons, quotes, leading zeros, trailing blanks, any script.

    Raises:
        ArtefactError: fewer than two labels, an empty or repeated one, or one with a line break, another
            control character or bytes that are not UTF-8.
    """
    if len(labels) < 2:
        raise ArtefactError(f"labels: got {len(labels)}, a classifier needs at least two")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ArtefactError(f"labels: {twice!r} occurs twice; rename one of the classes")
    for label in labels:
        if not label.strip() or label.splitlines() != [label]:
            raise ArtefactError(f"labels: {label!r} is empty or has a line break; rename the class")
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in label):
            raise ArtefactError(
                f"labels: {label!r} has a control character or is not UTF-8; rename the class"
            )


def labels_text(labels: Sequence[str]) -> str:
    """The content of the label file."""
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
        labels = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ArtefactError(f"{path}: cannot read the labels ({exc}); publish the model again") from exc
    if labels[-1] == "":
        labels.pop()
    check_labels(labels)
    return labels


def labels_sha256(labels: Sequence[str]) -> str:
    """sha256 of the labels in their order, as hex."""
    return hashlib.sha256(labels_text(labels).encode()).hexdigest()

"""What comes along with a model from elsewhere: labels, preprocessing, and images to judge it on."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import timm

from export.adopt.timm_model import check_timm_name, preprocessing_values
from fruitstand.artefacts import read_json
from fruitstand.contract import IMAGE_SUFFIXES, Preprocessing
from fruitstand.errors import ArtefactError, DataError, ImageRejected, UsageError
from fruitstand.images.reference_decode import decode_reference
from fruitstand.images.synthetic import supported_images
from fruitstand.labels import check_labels
from fruitstand.manifest import ManifestRow, PreparedData

log = logging.getLogger("fruitstand.export")

TIMM = "timm:"
PAINTED = "painted"
MIN_IMAGES, MAX_IMAGES = 32, 1024
"""Of a user's folder: half of them calibrate int8, the gates measure on the others."""


def read_label_list(path: Path) -> list[str]:
    """Labels in the order of the model's outputs: a JSON list of strings, or one a line.

    Raises:
        ArtefactError: it cannot be read, or a label is empty, repeated or no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ArtefactError(f"{path}: cannot be read as UTF-8 labels ({exc})") from exc
    try:
        labels = json.loads(text)
    except ValueError:
        labels = None
    if not isinstance(labels, list):  # also a file whose only line is a number
        labels = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if not all(isinstance(label, str) for label in labels):
        raise ArtefactError(f"{path}: holds JSON, expected a list of strings")
    try:
        check_labels(labels)
    except ArtefactError as exc:
        raise ArtefactError(f"{path}: {exc}") from exc
    return labels


def read_preprocessing(given: str | None) -> dict[str, Any]:
    """The fields of `Preprocessing` that a user gives, by file or by a timm model; none for None.

    Raises:
        UsageError: timm knows no such model.
        ArtefactError: the file is no JSON object.
    """
    if given is None:
        return {}
    if given.startswith(TIMM):
        name = given.removeprefix(TIMM)
        check_timm_name(name)
        return preprocessing_values(timm.get_pretrained_cfg(name).to_dict())
    values = read_json(Path(given))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def make_preprocessing(values: dict[str, Any]) -> Preprocessing:
    """The contract, with the defaults of what is left out.

    Raises:
        UsageError: an unknown field, or a value that it does not allow.
    """
    try:
        return Preprocessing(**values)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"--preprocessing: {exc}") from exc


def painted_images(directory: Path) -> list[Path]:
    """Write images of every kind that a server takes; what a model is judged on when there are no others."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (name, content) in enumerate(supported_images().items()):
        paths.append(directory / f"{number}.{name.partition('_')[0]}")
        paths[-1].write_bytes(content)
    return paths


def find_images(folder: Path) -> list[Path]:
    """The images below a folder, at most `MAX_IMAGES` from all over it, in the order of their paths.

    Raises:
        UsageError: fewer than `MIN_IMAGES`.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < MIN_IMAGES:
        raise UsageError(f"--images: {folder} holds {len(paths)} images, at least {MIN_IMAGES} are needed")
    return paths[:: -(-len(paths) // MAX_IMAGES)]


def decode_images(paths: list[Path], preprocessing: Preprocessing) -> tuple[list[Path], np.ndarray]:
    """The images that a server would take, and their (N, H, W, 3) uint8 pixels; the others are named.

    Raises:
        DataError: it would take none.
    """
    taken, pixels = [], []
    for path in paths:
        try:
            pixels.append(decode_reference(path.read_bytes(), preprocessing))
            taken.append(path)
        except ImageRejected as exc:
            log.warning("%s is left out: %s", path, exc)
    if not taken:
        raise DataError("no image can be decoded, the warnings say why")
    return taken, np.stack(pixels)


def as_prepared(
    folder: Path, paths: list[Path], labels: list[str], answers: np.ndarray, *, is_painted: bool = False
) -> PreparedData:
    """Images in the form of a prepared folder, split in two: every second one calibrates.

    An image's class is its folder's name where every folder is named as a label, otherwise what the model
    answers: then the gates measure agreement and not accuracy.

    Args:
        folder: that holds the images.
        paths: of them.
        labels: the classes.
        answers: (N, C) the original's probabilities.
        is_painted: all are measured on, and no folder's name is a class.
    """
    is_labelled = not is_painted and all(path.parent.name in labels for path in paths)
    rows = []
    for number, (path, answer) in enumerate(zip(paths, answers, strict=True)):
        split = "train" if number % 2 and not is_painted else "val"
        label = path.parent.name if is_labelled else labels[int(answer.argmax())]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append(ManifestRow(path.relative_to(folder).as_posix(), digest, label, "", "", number, split))
    if is_labelled:
        right = np.mean([row.label == labels[int(a.argmax())] for row, a in zip(rows, answers, strict=True)])
        log.info("the original's top-1 is %.4f on %d images, by the names of their folders", right, len(rows))
    digest = hashlib.sha256("".join(row.sha256 for row in rows).encode()).hexdigest()
    return PreparedData(folder, labels, rows, folder.resolve().name, digest, "", {})

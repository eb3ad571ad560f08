"""Inputs for an external model: labels, preprocessing, images for the gates, and timm models with weights."""

import difflib
import hashlib
import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch

from fruitstand.artefacts import read_json
from fruitstand.contract import IMAGE_SUFFIXES, Preprocessing
from fruitstand.errors import ArtefactError, DataError, ImageRejected, UsageError
from fruitstand.images.reference_decode import decode_reference
from fruitstand.images.synthetic import supported_images
from fruitstand.labels import check_labels
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.model.network import create_network, read_weights

log = logging.getLogger("fruitstand.export")

TIMM = "timm:"
PAINTED = "painted"
MIN_IMAGES, MAX_IMAGES = 32, 1024
"""Limits for a user's folder. Half of the images calibrate int8, the gates measure on the others."""


def read_label_list(path: Path) -> list[str]:
    """Read labels in output order: a JSON list of strings, or one per line.

    Raises:
        ArtefactError: the file cannot be read, or a label is empty, repeated or not a string.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ArtefactError(f"{path}: cannot be read as UTF-8 labels ({exc})") from exc
    try:
        labels = json.loads(text)
    except ValueError:
        labels = None
    if not isinstance(labels, list):  # JSON, but for example a single number
        labels = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if not all(isinstance(label, str) for label in labels):
        raise ArtefactError(f"{path}: holds JSON, expected a list of strings")
    try:
        check_labels(labels)
    except ArtefactError as exc:
        raise ArtefactError(f"{path}: {exc}") from exc
    return labels


def read_preprocessing(given: str | None) -> dict[str, Any]:
    """Read fields of `Preprocessing` from a JSON file, or from timm for timm:NAME; None gives no fields.

    Raises:
        UsageError: timm does not know the model.
        ArtefactError: the file is not a JSON object.
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
    """Make the contract; missing fields get their defaults.

    Raises:
        UsageError: an unknown field or a value that is not allowed.
    """
    try:
        return Preprocessing(**values)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"--preprocessing: {exc}") from exc


def painted_images(directory: Path) -> list[Path]:
    """Write generated images of every supported kind, for the gates when a user gives no images."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (name, content) in enumerate(supported_images().items()):
        paths.append(directory / f"{number}.{name.partition('_')[0]}")
        paths[-1].write_bytes(content)
    return paths


def find_images(folder: Path) -> list[Path]:
    """Find images below a folder, at most `MAX_IMAGES` spread evenly over the sorted paths.

    Raises:
        UsageError: fewer than `MIN_IMAGES` images.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < MIN_IMAGES:
        raise UsageError(f"--images: {folder} holds {len(paths)} images, at least {MIN_IMAGES} are needed")
    return paths[:: -(-len(paths) // MAX_IMAGES)]


def decode_images(paths: list[Path], preprocessing: Preprocessing) -> tuple[list[Path], np.ndarray]:
    """Decode images; returns the paths of accepted images and (N, H, W, 3) uint8. Logs refused ones.

    Raises:
        DataError: all images are refused.
    """
    taken, pixels = [], []
    for path in paths:
        try:
            pixels.append(decode_reference(path.read_bytes(), preprocessing))
            taken.append(path)
        except ImageRejected as exc:
            log.warning("%s is left out: %s", path, exc)
    if not taken:
        raise DataError("no image can be decoded; the warnings above say why")
    return taken, np.stack(pixels)


def as_prepared(
    folder: Path, paths: list[Path], labels: list[str], answers: np.ndarray, *, is_painted: bool = False
) -> PreparedData:
    """Describe images as prepared data in two splits; every second image calibrates.

    If every folder is named after a label, it is the class of its images. Otherwise the class is the model's
    own answer, and the gates measure agreement instead of accuracy.

    `answers` are the original's probabilities, (N, C) float32. Of generated images the gates measure on all,
    and their folder names are no classes.
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
        log.info(
            "top-1 of the original is %.4f on %d images, with their folder names as labels", right, len(rows)
        )
    digest = hashlib.sha256("".join(row.sha256 for row in rows).encode()).hexdigest()
    return PreparedData(folder, labels, rows, folder.resolve().name, digest, "", {})


def make_timm_model(
    name: str, weights: Path | None, labels: list[str] | None, input_size: tuple[int, int] | None
) -> torch.nn.Module:
    """Load a timm model with its pretrained weights, including the head, or with the weights of a file.

    `name` may be hf-hub:OWNER/MODEL. `labels` and `input_size` (height and width, pixels) describe a file of
    weights; without a size it is timm's.

    Raises:
        UsageError: timm does not know the model, or a file comes without labels.
        ArtefactError: the weights cannot be fetched, or the file is not for this model.
    """
    check_timm_name(name, hub=weights is None)
    if weights is None:
        # It logs every attempt; the error below is enough.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as exc:  # the hub's client raises OSError and many classes of its own
            raise ArtefactError(
                f"timm:{name}: its pretrained weights cannot be fetched ({type(exc).__name__}); connect to"
                " the network, set HF_HOME to a filled cache, or give a file with --weights"
            ) from exc
    if labels is None:
        raise UsageError("--weights: a file does not name its classes; give --labels")
    known = timm.get_pretrained_cfg(name)
    size = input_size or preprocessing_values({} if known is None else known.to_dict())["input_size"]
    model = create_network(name, num_classes=len(labels), input_size=size)
    try:
        model.load_state_dict(read_weights(weights))
    except Exception as exc:  # safetensors and torch raise their own classes for a wrong file
        reason = " ".join(str(exc).split())[:200]
        raise ArtefactError(
            f"{weights}: not safetensors weights of {name} with {len(labels)} classes ({reason})"
        ) from exc
    return model


def check_timm_name(name: str, *, hub: bool = False) -> None:
    """Check that timm knows a model name.

    `hub` allows hf-hub:OWNER/MODEL too.

    Raises:
        UsageError: unknown name; the message suggests similar ones.
    """
    if not (hub and name.startswith("hf-hub:")) and not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=4))
        raise UsageError(
            f"timm does not know the model {name!r}" + (f"; similar names: {near}" if near else "")
        )


def preprocessing_values(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """The fields of timm's data config that the contract has."""
    config = timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg)
    known = {field.name for field in fields(Preprocessing)} - {"input_size", "crop"}
    size = {"input_size": tuple(config["input_size"][1:])}
    return {key: value for key, value in config.items() if key in known} | size


def imagenet_labels(model: torch.nn.Module) -> list[str]:
    """ImageNet's labels for a model that has its classes; duplicate names get their synset appended.

    Raises:
        UsageError: timm does not know the model's classes.
    """
    subset = timm.data.infer_imagenet_subset(model)
    if subset is None:
        raise UsageError(f"--labels: timm has no names for {model.num_classes} classes; give a file")
    info = timm.data.ImageNetInfo(subset)
    names = [info.index_to_description(index) for index in range(info.num_classes())]
    return [
        name if names.count(name) == 1 else f"{name} ({info.index_to_label_name(index)})"
        for index, name in enumerate(names)
    ]


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights, hexadecimal."""
    return hashlib.sha256(safetensors.torch.save(model.state_dict())).hexdigest()

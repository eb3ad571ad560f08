"""Put a checked candidate into a model repository as its next version."""

import shutil
from pathlib import Path

from export.render import FP32_MODEL, INT8_MODEL, write_repository
from fruitstand.artefacts import atomic_directory, read_json, sha256_file, sweep_temporaries, write_json
from fruitstand.contract import FRUIT_RESNET, Preprocessing
from fruitstand.errors import ArtefactError
from fruitstand.labels import labels_sha256

MANIFEST_NAME = "manifest.json"


def published_versions(repository: Path) -> list[int]:
    """Version numbers of the classifier, ascending."""
    directory = repository / FRUIT_RESNET
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.is_dir() and path.name.isdecimal())


def publish(
    repository: Path,
    files: list[Path],
    manifest: dict,
    preprocessing: Preprocessing,
    labels: list[str],
    *,
    cpu_engine: str,
) -> int:
    """Publish a version: its folder appears whole, or not at all.

    Args:
        repository: the model repository; made if missing.
        files: the ONNX files, outside the repository.
        manifest: what is known about them; their sha256 are added.
        preprocessing: the contract of this model.
        labels: its classes.
        cpu_engine: "openvino" or "cpu", what serves it without a GPU.

    Returns:
        The version's number.

    Raises:
        ArtefactError: the repository serves other classes, or images preprocessed in another way.
    """
    versions = published_versions(repository)
    if versions:
        _check_same_contract(repository, versions[-1], preprocessing, labels)
    model = repository / FRUIT_RESNET
    model.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(model)
    version = versions[-1] + 1 if versions else 1
    with atomic_directory(model / str(version)) as staged:
        for file in files:
            shutil.copyfile(file, staged / file.name)
        described = {
            file.name: {"sha256": sha256_file(staged / file.name), "size_bytes": file.stat().st_size}
            for file in files
        }
        write_json(staged / MANIFEST_NAME, {"version": version, "files": described, **manifest})
    # After the version: a configuration may only name files that are there.
    served = INT8_MODEL if INT8_MODEL in described else FP32_MODEL
    write_repository(repository, preprocessing, labels, cpu_model=served, cpu_engine=cpu_engine)
    return version


def _check_same_contract(
    repository: Path, version: int, preprocessing: Preprocessing, labels: list[str]
) -> None:
    """One label file and one decode step serve all versions."""
    published = read_json(repository / FRUIT_RESNET / str(version) / MANIFEST_NAME)
    if published["labels_sha256"] != labels_sha256(labels):
        raise ArtefactError(
            f"{repository}: serves other classes in version {version}, and Triton keeps one label file"
            " for all versions; publish into another repository with --repository"
        )
    if published["preprocessing"] != preprocessing.to_dict():
        raise ArtefactError(
            f"{repository}: version {version} was trained with other preprocessing, and one decode step"
            " serves all versions; publish into another repository with --repository"
        )

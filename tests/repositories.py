"""A clean model repository, and faults to plant in it: for the tests of the configuration linter."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.gates import config_lint
from export.gates.config_lint import lint_repository
from export.publish.render import write_repository
from fruitstand.artefacts import sha256_file, write_bytes, write_json
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE, Preprocessing
from fruitstand.labels import labels_sha256
from fruitstand.repository.version_record import FP16_MODEL, FP32_MODEL, INT8_MODEL
from fruitstand.repository.versions import GOLDEN_LIST, MANIFEST_NAME, ServingState

VERSION = 2
DECODE = f"{IMAGE_DECODE}/config.pbtxt"
DECODE_HOST = f"{IMAGE_DECODE}/configs/host.pbtxt"
RESNET = f"{FRUIT_RESNET}/configs/cpu.pbtxt"
RESNET_GPU = f"{FRUIT_RESNET}/configs/gpu.pbtxt"
RESNET_TENSORRT = f"{FRUIT_RESNET}/configs/gpu-trt.pbtxt"
ENSEMBLE = f"{FRUIT_CLASSIFIER}/config.pbtxt"

GOLDEN_ANSWER = [0.75, 0.25]

Change = Callable[[pb.ModelConfig], object]
Plant = Callable[[Path], object]
"""Puts a fault into a clean repository."""


def clean_repository(directory: Path) -> Path:
    """A rendered repository that serves a published version."""
    repository = directory / "model_repository"
    labels = [f"Fruit {n}" for n in range(12)]
    write_repository(repository, Preprocessing(), labels, state=ServingState(VERSION, 1))
    for name in (FP32_MODEL, INT8_MODEL, FP16_MODEL):
        path = repository / FRUIT_RESNET / str(VERSION) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return repository


def place_version(repository: Path, number: int, model: bytes = b"weights") -> Path:
    """A version as publishing leaves it; its model is a few bytes, which nothing can load."""
    directory = repository / FRUIT_RESNET / str(number)
    labels = ["Apple", "Pear"]
    write_bytes(directory / FP32_MODEL, model)
    write_bytes(directory / "golden" / "0.jpg", b"image")
    golden = {"images": [{"file": "0.jpg", "probabilities": GOLDEN_ANSWER}]}
    write_json(directory / GOLDEN_LIST, golden)
    files = {
        path.relative_to(directory).as_posix(): {
            "sha256": sha256_file(path),
            "size_bytes": path.stat().st_size,
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "version": number,
        "model_name": "resnet10t",
        "source_run": {"name": "tiny"},
        "labels": labels,
        "labels_sha256": labels_sha256(labels),
        "preprocessing": Preprocessing().to_dict(),
        "gates": [],
        "serve": {"cpu_model": FP32_MODEL, "cpu_engine": "cpu", "gpu_model": FP32_MODEL},
        "files": files,
    }
    write_json(directory / MANIFEST_NAME, manifest)
    return directory


def edit(files: str, change: Change) -> Plant:
    """Change every configuration that the glob finds."""

    def plant(repository: Path) -> None:
        paths = list(repository.glob(files))
        assert paths
        for path in paths:
            config = text_format.Parse(path.read_text(), pb.ModelConfig())
            change(config)
            path.write_text(text_format.MessageToString(config))

    return plant


def put(file: str, content: bytes) -> Plant:
    """Write a file."""
    return lambda repository: (repository / file).write_bytes(content)


def remove(path: str) -> Plant:
    """Delete a file or a folder."""

    def plant(repository: Path) -> None:
        if (repository / path).is_dir():
            shutil.rmtree(repository / path)
        else:
            (repository / path).unlink()

    return plant


def broken_rules(repository: Path) -> set[str]:
    """The names of the rules that are broken; every finding is fit to be shown."""
    findings = lint_repository(repository)
    for finding in findings:
        assert not finding.file.is_absolute()
        assert str(repository) not in str(finding), "a message names files as the repository does"
        assert len(str(finding).splitlines()) == 1
    return {finding.rule for finding in findings}


def rule_names() -> set[str]:
    """The rules that the linter names."""
    source = Path(config_lint.__file__).read_text()
    return set(re.findall(r'(?:yield (?:\(\s*)?|Finding\(\s*[\w.]+,\s*)"([a-z_]+)"', source))


def planted_rules(test: Callable[..., None]) -> set[str]:
    """The rules that a parametrised test plants a fault for."""
    (cases,) = (mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize")
    return {case.values[0] for case in cases.args[1]}

"""A published version of a few bytes, and changes of a repository's configurations."""

from collections.abc import Callable
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from fruitstand.artefacts import sha256_file, write_bytes, write_json
from fruitstand.contract import FRUIT_RESNET, IMAGE_DECODE, Preprocessing
from fruitstand.labels import labels_sha256
from fruitstand.repository.version_record import FP32_MODEL
from fruitstand.repository.versions import GOLDEN_LIST, MANIFEST_NAME

DECODE = f"{IMAGE_DECODE}/config.pbtxt"

GOLDEN_ANSWER = [0.75, 0.25]


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


def edit(files: str, change: Callable[[pb.ModelConfig], object]) -> Callable[[Path], object]:
    """Change every configuration that the glob finds."""

    def plant(repository: Path) -> None:
        paths = list(repository.glob(files))
        assert paths
        for path in paths:
            config = text_format.Parse(path.read_text(), pb.ModelConfig())
            change(config)
            path.write_text(text_format.MessageToString(config))

    return plant

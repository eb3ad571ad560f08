"""Render what Triton reads (`config.pbtxt`, `dali.py`, labels) from the contract and `export/templates`.

The rendered files are committed in `model_repository/`; a test fails when they differ from this.
"""

from pathlib import Path
from string import Template

from fruitstand import contract
from fruitstand.artefacts import write_bytes
from fruitstand.contract import Preprocessing
from fruitstand.labels import labels_text

TEMPLATES = Path(__file__).parent / "templates"
LABELS_FILE = Path(contract.FRUIT_RESNET, "labels.txt")

FP32_MODEL = "model.onnx"
INT8_MODEL = "model.int8.onnx"

_CPU_OPTIMIZATION = {
    "openvino": (
        'optimization { execution_accelerators { cpu_execution_accelerator: [ { name: "openvino" } ] } }'
    ),
    "cpu": "# ONNX Runtime's own kernels: OpenVINO's answered wrongly where this was exported.",
}
_DALI_INTERPOLATION = {"bilinear": "INTERP_LINEAR"}


def render_repository(
    preprocessing: Preprocessing,
    labels: list[str],
    *,
    cpu_model: str = INT8_MODEL,
    cpu_engine: str = "openvino",
) -> dict[Path, str]:
    """Every rendered file of a model repository.

    Args:
        preprocessing: the contract of the model to be served.
        labels: its classes, in the order of its outputs.
        cpu_model: the file served without a GPU.
        cpu_engine: "openvino", or "cpu" for ONNX Runtime's own kernels.

    Returns:
        Content by path relative to the repository.
    """
    height, width = preprocessing.input_size
    values = {
        "image_decode": contract.IMAGE_DECODE,
        "fruit_resnet": contract.FRUIT_RESNET,
        "fruit_classifier": contract.FRUIT_CLASSIFIER,
        "image": contract.IMAGE,
        "encoded": contract.ENCODED,
        "pixels": contract.PIXELS,
        "probabilities": contract.PROBABILITIES,
        "max_batch_size": contract.MAX_BATCH_SIZE,
        "num_classes": len(labels),
        "height": height,
        "width": width,
        "resize_mode": preprocessing.resize_mode,
        "antialias": preprocessing.antialias,
        "dali_interpolation": _DALI_INTERPOLATION[preprocessing.interpolation],
        "cpu_model": cpu_model,
        "cpu_optimization": _CPU_OPTIMIZATION[cpu_engine],
        "gpu_model": FP32_MODEL,
    }
    rendered = {
        path.relative_to(TEMPLATES): Template(path.read_text(encoding="utf-8")).substitute(values)
        for path in sorted(TEMPLATES.rglob("*"))
        if path.is_file()
    }
    rendered[LABELS_FILE] = labels_text(labels)
    return rendered


def write_repository(
    repository: Path,
    preprocessing: Preprocessing,
    labels: list[str],
    *,
    cpu_model: str = INT8_MODEL,
    cpu_engine: str = "openvino",
) -> list[Path]:
    """Bring a repository's rendered files up to date; return those that changed."""
    changed = []
    for relative, content in render_repository(
        preprocessing, labels, cpu_model=cpu_model, cpu_engine=cpu_engine
    ).items():
        path = repository / relative
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            write_bytes(path, content.encode())
            changed.append(relative)
    return changed


def main() -> None:
    """Render the committed repository again, for the classes its label file names."""
    from fruitstand.labels import read_labels

    repository = TEMPLATES.parents[1] / "model_repository"
    for path in write_repository(repository, Preprocessing(), read_labels(repository / LABELS_FILE)):
        print(f"rendered {path}")


if __name__ == "__main__":
    main()

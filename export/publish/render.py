"""Render Triton's files (`config.pbtxt`, `dali.py`, labels) from the contract and `export/templates`.

The rendered files are committed in `model_repository/`; a test fails when they differ from this.
"""

import inspect
import json
from pathlib import Path
from string import Template
from typing import Any

from fruitstand import contract
from fruitstand.artefacts import write_bytes
from fruitstand.contract import Preprocessing
from fruitstand.images.dali_operation import decode_pixels
from fruitstand.labels import labels_text
from fruitstand.repository.model_names import ModelNames
from fruitstand.repository.tuning import DEFAULTS, Tuning
from fruitstand.repository.version_record import EXPLAINER_MODEL, FP32_MODEL, ServedFiles
from fruitstand.repository.versions import LOADED_CONFIG, ServingState

TEMPLATES = Path(__file__).parents[1] / "templates"
LABELS_FILE = Path(contract.FRUIT_RESNET, "labels.txt")
"""Under the default names, as all paths here: they are the templates' own."""
WARMUP_IMAGE = Path(contract.IMAGE_DECODE, "warmup", "sample.jpg")
"""A generated image for the warm-up of the decode step."""

_DALI_FILE = Path(contract.IMAGE_DECODE, "1", "dali.py")
_GPU_DALI = Path(contract.IMAGE_DECODE_DALI, "configs", "gpu.pbtxt")
_GPU_GUARDED = Path(contract.IMAGE_DECODE, "configs", "gpu.pbtxt")
_IMAGE_MODULES = (
    "__init__", "header", "orientation", "structure",
    *(f"formats/{name}" for name in ("__init__", "bmp", "jpeg", "jpeg_tables", "png", "webp")),
)  # fmt: skip
_GUARD_IMPORTS = (
    "__init__.py",
    "contract.py",
    "errors.py",
    *(f"images/{name}.py" for name in _IMAGE_MODULES),
)

COPIES = {
    Path(contract.IMAGE_GUARD, "warmup", WARMUP_IMAGE.name): WARMUP_IMAGE,
    Path(contract.IMAGE_DECODE_DALI, "warmup", WARMUP_IMAGE.name): WARMUP_IMAGE,
    Path(contract.IMAGE_DECODE_DALI, "1", "dali.py"): _DALI_FILE,
    Path(contract.IMAGE_DECODE_DALI, "configs", "gpu-trt.pbtxt"): _GPU_DALI,
    Path(contract.IMAGE_DECODE, "configs", "gpu-trt.pbtxt"): _GPU_GUARDED,
    Path(contract.IMAGE_DECODE, "configs", f"{contract.CPU_NATIVE_CONFIG}.pbtxt"): (_GPU_GUARDED),
    Path(contract.FRUIT_RESNET, "configs", f"{contract.CPU_NATIVE_CONFIG}.pbtxt"): LOADED_CONFIG,
}
"""Rendered files that are copies of another one, by the template they are made from."""

UNNAMED = Path(contract.FRUIT_RESNET, "config.pbtxt")
"""For a server without `--model-config-name`. Promotions must not change it: if a file in a model's folder
outside of `configs` and the version folders is newer, Triton reloads every version instead of only the new
one (core, `ModelTimestamp`)."""

SWITCH = Path(contract.FRUIT_CLASSIFIER, "config.pbtxt")
"""Pins the served version, so it is rendered last."""

_CPU_OPTIMIZATION = {
    "openvino": (
        'optimization { execution_accelerators { cpu_execution_accelerator: [ { name: "openvino" } ] } }'
    ),
    "cpu": "# ONNX Runtime's own kernels: OpenVINO's answered wrongly where this was exported.",
}
_CONTRACTS = (
    *("IMAGE", "ENCODED", "PIXELS", "PROBABILITIES", "MAX_BATCH_SIZE"),
    *("FEATURE_MAP", "ACTIVATION", "NEIGHBOURS", "THUMBNAILS", "CROP", "NUM_NEIGHBOURS", "PICTURE_BYTES"),
)
"""Constants of the contract that templates name, in lower case."""
_KNOWN_OUTPUTS = "".join(
    f', {{ name: "{name}" data_type: TYPE_FP32 dims: [ 1 ] }}' for name in (contract.KNOWN, contract.SET_SIZE)
)
_KNOWN_MAPS = "".join(
    f'\n      output_map {{ key: "{name}" value: "{name}" }}' for name in (contract.KNOWN, contract.SET_SIZE)
)


def render_repository(
    preprocessing: Preprocessing,
    labels: list[str],
    *,
    files: ServedFiles | None = None,
    state: ServingState | None = None,
    tuning: Tuning = DEFAULTS,
    names: ModelNames | None = None,
) -> dict[Path, bytes]:
    """Every rendered file of a model repository, in the order to write them.

    Without a state nothing is published yet. Without `files`, int8 is served by OpenVINO, and fp16 on a GPU.

    Returns:
        Content by path relative to the repository.
    """
    names = names or ModelNames()
    # With nothing published, the files name version 1 and do not mark it as served.
    number = 1 if state is None else state.version
    loaded = ", ".join(map(str, [number] if state is None else state.loaded))
    values = (
        _model_values(preprocessing, labels, files or ServedFiles(), names)
        | _tuning_values(tuning)
        | {
            "pinned_version": number,
            "served_version": "" if state is None else number,
            "previous_version": "" if state is None or state.previous is None else state.previous,
            "version_policy": f"specific {{ versions: [ {loaded} ] }}",
        }
    )
    rendered = {}
    explains = files is not None and files.explains
    for path in sorted(path for path in TEMPLATES.rglob("*") if path.is_file()):
        relative, content = path.relative_to(TEMPLATES), path.read_bytes()
        if relative.parts[0] in contract.EXPLAINER_MODELS and not explains:
            continue
        if relative != WARMUP_IMAGE:
            content = Template(content.decode()).substitute(values).encode()
        rendered[relative] = content
    for copy, original in COPIES.items():
        rendered[copy] = rendered[original]
    # NVIDIA's container has no fruitstand, so the guard contains copies of the modules that it needs.
    package = Path(contract.__file__).parent
    for path in (package / name for name in _GUARD_IMPORTS):
        copy = Path(contract.IMAGE_GUARD, "1", package.name, path.relative_to(package))
        rendered[copy] = path.read_bytes()
    template = Template((TEMPLATES / LOADED_CONFIG).read_text())
    rendered[UNNAMED] = template.substitute(values | {"version_policy": "all { }"}).encode()
    rendered[LABELS_FILE] = labels_text(labels).encode()
    if explains:
        rendered[Path(contract.EXPLAINER_HEAD, LABELS_FILE.name)] = rendered[LABELS_FILE]
    # Triton requires a version folder for the ensemble; every answer names its number.
    readme = rendered.pop(Path(contract.FRUIT_CLASSIFIER, "1", "README"))
    rendered[Path(contract.FRUIT_CLASSIFIER, str(number), "README")] = readme
    rendered[SWITCH] = rendered.pop(SWITCH)
    return {names.place(path): content for path, content in rendered.items()}


def _model_values(
    preprocessing: Preprocessing, labels: list[str], files: ServedFiles, names: ModelNames
) -> dict[str, Any]:
    """Template fields that are equal for all versions of a model."""
    height, width = preprocessing.input_size
    return {
        **dict(zip(contract.MODELS, names.all, strict=True)),
        **dict(zip(contract.EXPLAINER_MODELS, names.explaining, strict=True)),
        **{name.lower(): getattr(contract, name) for name in _CONTRACTS},
        "num_classes": len(labels),
        "height": height,
        "width": width,
        "preprocessing": _as_python(preprocessing),
        "decode_pixels": inspect.getsource(decode_pixels),
        "cpu_model": files.cpu_model,
        "cpu_optimization": _CPU_OPTIMIZATION[files.cpu_engine],
        "gpu_model": files.gpu_model,
        "known_outputs": _KNOWN_OUTPUTS if files.known else "",
        "known_maps": _KNOWN_MAPS if files.known else "",
        "feature_map_dims": ", ".join(map(str, files.feature_map)),
        "num_maps": min(contract.MAX_MAPS, len(labels)),
        "fp32_model": FP32_MODEL,
        "explainer_model": EXPLAINER_MODEL,
        "warmup_image": WARMUP_IMAGE.name,
        "warmup_size_bytes": (TEMPLATES / WARMUP_IMAGE).stat().st_size,
    }


def _as_python(preprocessing: Preprocessing) -> str:
    """The contract as source code, without mean and std, which are in the ONNX graph only."""
    values = preprocessing.to_dict()
    lines = [
        f"    {json.dumps(key)}: {json.dumps(value)},"
        for key, value in values.items()
        if key not in ("mean", "std")
    ]
    return "\n".join(("{", *lines, "}"))


def _tuning_values(tuning: Tuning) -> dict[str, Any]:
    """Template fields from the tuning; settings that it omits are not written."""
    preferred, threads = tuning.infer_preferred_batch, tuning.infer_threads
    parameter = 'parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{}" }} }}'
    return tuning.to_dict() | {
        "infer_preferred": f"preferred_batch_size: [ {preferred} ] " if preferred else "",
        "infer_threads": "\n" + parameter.format(threads) if threads else "",
    }


def write_repository(
    repository: Path, preprocessing: Preprocessing, labels: list[str], **choices: Any
) -> list[Path]:
    """Update a repository's rendered files; returns those that changed.

    The choices are those of `render_repository`.
    """
    changed = []
    for relative, content in render_repository(preprocessing, labels, **choices).items():
        path = repository / relative
        if not path.is_file() or path.read_bytes() != content:
            write_bytes(path, content)
            changed.append(relative)
    return changed


def main() -> None:
    """Render the committed repository again, with the classes of its label file."""
    from fruitstand.labels import read_labels

    repository = TEMPLATES.parents[1] / "model_repository"
    for path in write_repository(repository, Preprocessing(), read_labels(repository / LABELS_FILE)):
        print(f"rendered {path}")


if __name__ == "__main__":
    main()

"""The record of a model version: `candidate.json` before it is published, `manifest.json` afterwards.

These files are untrusted input: their names end up in paths and in `config.pbtxt`. So the record is validated
before anything in it is used.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json, sha256_file
from fruitstand.contract import CPU_ENGINES, Preprocessing
from fruitstand.errors import ArtefactError
from fruitstand.labels import labels_sha256

FP32_MODEL = "model.onnx"
INT8_MODEL = "model.int8.onnx"
FP16_MODEL = "model.fp16.onnx"
EXPLAINER_MODEL = "explainer.onnx"
"""Says why the fp32 file answered as it did; not a network of its own."""

_FILE_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GATE_KEYS = {"name", "kind", "value", "limit"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedFiles:
    """Which file of a version is served on which hardware."""

    cpu_model: str = INT8_MODEL
    """The file served without a GPU."""
    cpu_engine: str = "openvino"
    """"openvino", or "cpu" for ONNX Runtime's own kernels."""
    gpu_model: str = FP16_MODEL
    """The file served on a GPU."""
    known: bool = False
    """Whether the files tell what they do not know (`KNOWN`); versions from before that do not say."""
    feature_map: tuple[int, ...] = ()
    """Shape of what the explainer reads, (D, h, w); empty where a version has none."""

    @property
    def explains(self) -> bool:
        """Whether the explainer is served beside the classifier."""
        return bool(self.feature_map)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a version."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The content of `candidate.json` and `manifest.json`; fields that are None are not written."""

    version: int | None = None
    """None in a candidate."""
    fruitstand_version: str | None = None
    passed: bool | None = None
    """Whether a candidate passed its gates; None in a version."""
    model_name: str
    labels: list[str]
    labels_sha256: str
    preprocessing: dict[str, Any]
    """Kept as JSON, so that records of earlier versions of fruitstand are passed on unchanged."""
    source_run: dict[str, Any]
    gates_data: dict[str, Any] | None = None
    """The prepared folder that the gates measured on."""
    gates: list[dict[str, Any]]
    reports: dict[str, Any] | None = None
    abstention: dict[str, Any] | None = None
    """What `KNOWN` and the label sets were calibrated to, and how they did; None without."""
    requires: dict[str, Any] | None = None
    """Oldest supported server, and opset and IR version of the files."""
    files: dict[str, FileEntry]
    """Keyed by name relative to the folder."""
    serve: ServedFiles

    @property
    def networks(self) -> list[str]:
        """Names of the ONNX files that take pixels and give probabilities, sorted."""
        return sorted(name for name in self.files if name.endswith(".onnx") and name != EXPLAINER_MODEL)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-ready values."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """Make an entry for every file in a folder, sorted by name."""
    return {
        path.relative_to(directory).as_posix(): FileEntry(
            sha256=sha256_file(path), size_bytes=path.stat().st_size
        )
        for path in sorted(path for path in directory.rglob("*") if path.is_file())
    }


def read_record(path: Path) -> Record:
    """Read a candidate's or a version's record.

    Raises:
        ArtefactError: the record cannot be read, is incomplete, or has invalid values.
    """
    document = read_json(path)
    try:
        known = {field.name: document[field.name] for field in fields(Record) if field.name in document}
        known["files"] = {name: FileEntry(**entry) for name, entry in document["files"].items()}
        serve = document["serve"]
        feature_map = tuple(map(int, serve.get("feature_map", ())))
        record = Record(**{**known, "serve": ServedFiles(**{**serve, "feature_map": feature_map})})
        reason = next(_problems(record, document), None)
    except ArtefactError as exc:
        reason = str(exc)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        reason = f"{type(exc).__name__}: {exc}"
    if reason:
        raise ArtefactError(f"{path}: altered, or of another version of fruitstand ({reason}); export again")
    return record


def _problems(record: Record, document: dict[str, Any]) -> Iterator[str]:
    """Describe invalid values; a value of a wrong type raises instead."""
    for name, entry in record.files.items():
        if not _FILE_NAME.fullmatch(name):
            yield f"the file name {name!r}"
        if not _SHA256.fullmatch(entry.sha256) or int(entry.size_bytes) < 0:
            yield f"the entry of {name}"
    if labels_sha256(record.labels) != record.labels_sha256:
        yield "its labels are not those it was checked with"
    Preprocessing.from_dict(record.preprocessing)
    if document["serve"].keys() | {"known", "feature_map"} != asdict(record.serve).keys():
        yield f"serve names {', '.join(document['serve'])}"
    for key in ("cpu_model", "gpu_model"):
        if (name := getattr(record.serve, key)) not in record.files:
            yield f"{key} {name!r} is none of its files"
    if record.serve.explains != (EXPLAINER_MODEL in record.files):
        yield f"explains {record.serve.explains}, and its files say otherwise"
    if record.serve.cpu_engine not in CPU_ENGINES:
        yield f"cpu_engine {record.serve.cpu_engine!r}, allowed {', '.join(CPU_ENGINES)}"
    if not isinstance(record.model_name, str) or not isinstance(record.source_run["name"], str):
        yield "the names of model and run"
    for gate in record.gates:
        if not gate.keys() >= _GATE_KEYS:
            yield f"the gate {gate.get('name')!r}"

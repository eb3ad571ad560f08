"""What a version says of itself: `candidate.json` before it is published, `manifest.json` afterwards.

Both are files that anybody may have written. Their names end up in paths and in `config.pbtxt`, so what
cannot be true is refused before anything of it is used.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fruitstand.artefacts import read_json
from fruitstand.contract import CPU_ENGINES, Preprocessing
from fruitstand.errors import ArtefactError
from fruitstand.labels import labels_sha256

_FILE_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GATE_KEYS = {"name", "kind", "value", "limit"}


def read_record(path: Path) -> dict[str, Any]:
    """Read a candidate's or a version's record.

    Raises:
        ArtefactError: it cannot be read, lacks something, or names what cannot be.
    """
    record = read_json(path)
    try:
        reason = next(_problems(record), None)
    except ArtefactError as exc:
        reason = str(exc)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        reason = f"{type(exc).__name__}: {exc}"
    if reason:
        raise ArtefactError(f"{path}: altered, or of another version of fruitstand ({reason}); export again")
    return record


def _problems(record: dict[str, Any]) -> Iterator[str]:
    """What is wrong; anything missing raises."""
    for name, entry in record["files"].items():
        if not _FILE_NAME.fullmatch(name):
            yield f"the file name {name!r}"
        if not _SHA256.fullmatch(entry["sha256"]) or int(entry["size_bytes"]) < 0:
            yield f"the entry of {name}"
    if labels_sha256(record["labels"]) != record["labels_sha256"]:
        yield "its labels are not those it was checked with"
    Preprocessing.from_dict(record["preprocessing"])
    serve = record["serve"]
    if serve.keys() != {"cpu_model", "cpu_engine", "gpu_model"}:
        yield f"serve names {', '.join(serve)}"
    for key in ("cpu_model", "gpu_model"):
        if serve[key] not in record["files"]:
            yield f"{key} {serve[key]!r} is none of its files"
    if serve["cpu_engine"] not in CPU_ENGINES:
        yield f"cpu_engine {serve['cpu_engine']!r}, allowed {', '.join(CPU_ENGINES)}"
    if not isinstance(record["model_name"], str) or not isinstance(record["source_run"]["name"], str):
        yield "the names of model and run"
    for gate in record["gates"]:
        if not gate.keys() >= _GATE_KEYS:
            yield f"the gate {gate.get('name')!r}"

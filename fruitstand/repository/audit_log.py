"""The audit log of a model repository, as it is read; `export.publish.audit` writes it."""

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

AUDIT_NAME = "audit.jsonl"


def read_audit(repository: Path) -> list[dict[str, Any]]:
    """The audit log's entries, oldest first; a line that a crash tore is left out."""
    path = repository / AUDIT_NAME
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def published_at(repository: Path, version: int) -> datetime.datetime | None:
    """When a version was published; None where the log does not say."""
    for entry in read_audit(repository):
        if (entry.get("action"), entry.get("version"), entry.get("done")) == ("publish", version, True):
            return datetime.datetime.fromisoformat(entry["time"])
    return None

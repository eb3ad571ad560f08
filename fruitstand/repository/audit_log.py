"""The audit log of a model repository: who published, promoted, refused or removed a version, and when."""

import contextlib
import datetime
import getpass
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("fruitstand.export")

AUDIT_NAME = "audit.jsonl"


def read_audit(repository: Path) -> list[dict[str, Any]]:
    """Read the entries of the audit log, oldest first; a line truncated by a crash is skipped."""
    path = repository / AUDIT_NAME
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def published_at(repository: Path, version: int) -> datetime.datetime | None:
    """When a version was published; None if the log has no such entry."""
    for entry in read_audit(repository):
        if (entry.get("action"), entry.get("version"), entry.get("done")) == ("publish", version, True):
            return datetime.datetime.fromisoformat(entry["time"])
    return None


def record(repository: Path, action: str, version: int | None, **details: Any) -> None:
    """Append one line to the audit log; a line truncated by a crash is ended first."""
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "user": _user(),
        "action": action,
        "version": version,
        **details,
    }
    path = repository / AUDIT_NAME
    torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    line = ("\n" if torn else "") + json.dumps(entry, ensure_ascii=False) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def audited(repository: Path, action: str, version: int | None) -> Iterator[dict[str, Any]]:
    """Record the success or failure of the block, which may add details to the yielded dict.

    If the log cannot be written, a warning is logged, because the action itself is done.
    """
    details: dict[str, Any] = {}
    outcome: dict[str, Any] = {"done": True}
    try:
        yield details
    except BaseException as exc:
        outcome = {"done": False, "reason": str(exc) or type(exc).__name__}
        raise
    finally:
        try:
            record(repository, action, details.pop("version", version), **outcome, **details)
        except OSError as exc:
            log.warning("%s: the %s was not logged: %s", repository / AUDIT_NAME, action, exc.strerror)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return str(os.getuid())

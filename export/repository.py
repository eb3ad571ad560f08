"""A model repository under change: one writer at a time, one file that switches, a log of what was done.

The ensemble's configuration pins the served version and is written last: until then the old version is
served, from then on the new one. What a killed command left half done is put right by the next one.
"""

import contextlib
import datetime
import fcntl
import getpass
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.render import ServedFiles, write_repository
from fruitstand.artefacts import sweep_temporaries
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE, Preprocessing
from fruitstand.errors import ArtefactError, FruitstandError, UsageError
from fruitstand.versions import (
    ServingState,
    Version,
    published_versions,
    read_version,
    serving_state,
    verify_version,
)

AUDIT_NAME = "audit.jsonl"
LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Be the only one who changes the repository, and remove what killed writers left.

    Raises:
        ArtefactError: somebody else is changing it now.
    """
    repository.mkdir(parents=True, exist_ok=True)
    with (repository / LOCK_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ArtefactError(
                f"{repository}: another command is changing it; try again when that has ended"
            ) from exc
        # Only where this stage writes: the folder named may be another one by mistake.
        for model in (IMAGE_DECODE, FRUIT_RESNET, FRUIT_CLASSIFIER):
            below = [path for path in (repository / model).rglob("*") if path.is_dir()]
            for directory in (repository / model, *below):
                sweep_temporaries(directory, of_anyone=True)
        _finish_interrupted(repository)
        yield


def _finish_interrupted(repository: Path) -> None:
    """Serve a first version whose publishing was cut short; render again what a promotion left half done."""
    state, versions = serving_state(repository), published_versions(repository)
    if state is None and versions:
        state = ServingState(versions[-1])
    if state is not None:
        write_served(repository, state)


def record(repository: Path, action: str, version: int | None, **details: Any) -> None:
    """Append one line to the audit log, whole or, after a crash, marked off by the next one."""
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
    """Record what the block did, or why it was refused; the block may add details."""
    details: dict[str, Any] = {}
    try:
        yield details
    except FruitstandError as exc:
        record(repository, action, version, done=False, reason=str(exc))
        raise
    record(repository, action, details.pop("version", version), done=True, **details)


def write_served(repository: Path, state: ServingState, *, also_loaded: tuple[int, ...] = ()) -> None:
    """Render everything for the version to be served; Triton reads it when it loads next.

    At no moment does the ensemble pin a version that the classifier would not load.

    Args:
        repository: the model repository.
        state: what is to be served.
        also_loaded: versions of the classifier to be loaded besides, without being asked.
    """
    pinned = serving_state(repository)
    if pinned is not None and pinned.version not in (state.version, *also_loaded):
        write_served(repository, state, also_loaded=(*also_loaded, pinned.version))
    manifest = read_version(repository, state.version).manifest
    write_repository(
        repository,
        Preprocessing.from_dict(manifest["preprocessing"]),
        manifest["labels"],
        files=ServedFiles(**manifest["serve"]),
        state=state,
        also_loaded=also_loaded,
    )


def served(repository: Path) -> ServingState:
    """Which version is served.

    Raises:
        UsageError: nothing is published there.
    """
    state = serving_state(repository)
    if state is None:
        raise UsageError(f"{repository}: nothing is published there; begin with 'fruitstand export'")
    return state


def list_versions(repository: Path) -> list[dict[str, Any]]:
    """Every version with what it is and which is served, oldest first.

    Raises:
        UsageError: nothing is published there.
    """
    state = served(repository)
    roles = {state.previous: "previous", state.version: "served"}
    rows = []
    for number in published_versions(repository):
        manifest = read_version(repository, number).manifest
        rows.append(
            {
                "version": number,
                "role": roles.get(number, ""),
                "model_name": manifest["model_name"],
                "source_run": manifest["source_run"]["name"],
                "serve": manifest["serve"],
                "size_bytes": sum(entry["size_bytes"] for entry in manifest["files"].values()),
            }
        )
    return rows


def check_repository(repository: Path, *, trusted_keys: Path | None) -> list[Version]:
    """Hold every version against its manifest.

    Raises:
        UsageError: nothing is published there.
        ArtefactError: a file is altered, missing or added, or a signature is not trusted.
    """
    served(repository)
    return [
        verify_version(repository, number, trusted_keys=trusted_keys)
        for number in published_versions(repository)
    ]


def prune(repository: Path, *, keep: int) -> list[int]:
    """Remove the oldest versions; the served one and the one before it always stay.

    Args:
        repository: the model repository.
        keep: how many of the newest to keep besides those two.

    Returns:
        The numbers removed.

    Raises:
        UsageError: nothing is published there, or `keep` is negative.
    """
    if keep < 0:
        raise UsageError(f"--keep: got {keep}, allowed 0 or more")
    with locked(repository), audited(repository, "prune", None) as details:
        state = served(repository)
        spare = [n for n in published_versions(repository) if n not in (state.version, state.previous)]
        removed = spare[: max(0, len(spare) - keep)]
        for number in removed:
            for model in (FRUIT_RESNET, FRUIT_CLASSIFIER):
                _remove_whole(repository / model / str(number))
        details["removed"] = removed
    return removed


def _remove_whole(directory: Path) -> None:
    """Take a folder out of sight at once, then delete it; a killed deletion is swept later."""
    if not directory.exists():
        return
    hidden = directory.with_name(f".tmp-{os.getpid()}-{directory.name}")
    directory.rename(hidden)
    shutil.rmtree(hidden)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return str(os.getuid())


def read_audit(repository: Path) -> list[dict[str, Any]]:
    """The audit log's entries, oldest first; a line that a crash tore is left out."""
    path = repository / AUDIT_NAME
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries

"""Write files and folders atomically (temporary name, fsync, rename), and compute their sha256."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fruitstand.errors import ArtefactError

_TEMPORARY = re.compile(r"\.tmp-(\d+)-")


def _temporary_for(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    If the block raises, the old content stays. Symbolic links are followed. A device such as /dev/stdout is
    written to directly. A private file can be read by its owner only, from its first byte on.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = _temporary_for(path)
    try:
        if private:
            temporary.touch(0o600)
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary directory beside `path`, and rename it to `path` if the block succeeds.

    With `replace` there may be a directory, which stays until the block has succeeded.

    Raises:
        ArtefactError: `path` exists already and `replace` is not set.
    """
    if path.exists() and not replace:
        raise ArtefactError(f"{path} exists already and is never changed; choose another name")
    temporary = _temporary_for(path)
    temporary.mkdir()
    try:
        yield temporary
        os.sync()  # one call for the many files of a data set; fsync on each takes minutes
        if replace:
            remove_directory(path)
        try:
            os.rename(temporary, path)
        except OSError as exc:
            raise ArtefactError(f"{path} cannot be created: {exc.strerror}") from exc
        fsync_path(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Rename a directory to a temporary name, then delete it; `sweep_temporaries` finishes after a kill."""
    if path.exists():
        hidden = _temporary_for(path)
        path.rename(hidden)
        shutil.rmtree(hidden)


def sweep_temporaries(directory: Path, *, of_anyone: bool = False) -> list[Path]:
    """Remove temporary files that killed processes left in `directory`; return the removed paths.

    Sub-folders are not searched. `of_anyone` also removes files of running processes, for callers that hold
    the directory's lock.
    """
    removed = []
    for path in directory.glob(".tmp-*"):
        match = _TEMPORARY.match(path.name)
        if match and (of_anyone or not Path(f"/proc/{match[1]}").exists()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed.append(path)
    return removed


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtefactError: the file is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ArtefactError(f"{path}: not a readable JSON file ({exc})") from exc
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: got a JSON {type(value).__name__}, expected an object")
    return value


def sha256_file(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

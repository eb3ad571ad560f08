"""Folders that take long to make, made once: kept on disk under a key of all that they depend on.

    .cache/tests/<name>-<key>/           what `build` made
    .cache/tests/<name>-<key>.json       the sha256 of each file, written last

The key covers the code that makes a folder, the lock, Python, the processor and the place of the cache. A
change in one of them is another key, so nothing here goes stale. A folder that is half made, or whose files
are not those of its list, is made again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fruitstand.artefacts import read_json, sha256_file, write_json
from fruitstand.errors import ArtefactError
from fruitstand.machine.provenance import hardware

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("FRUITSTAND_TEST_CACHE", ROOT / ".cache" / "tests")).resolve()
NUM_KEPT = 2
"""Folders of one name: this code's, and that from before a change which may be taken back."""


def built_once(
    name: str,
    build: Callable[[Path], object],
    *,
    sources: Sequence[str],
    ingredients: Sequence[Path] = (),
    cache: Path = CACHE,
) -> Path:
    """The folder that `build` makes, from the cache if it is there.

    Several processes may call this at once: one builds, the others wait.

    Args:
        name: of the folder.
        build: fills an empty folder. The folder stays where it is, so absolute paths in its files hold.
        sources: files and folders of this checkout whose contents decide what is made.
        ingredients: other folders from `built_once` that it is made from.
        cache: where to keep it.

    Returns:
        Its path. Callers read it and take a copy of what they change.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}-{_key(sources, ingredients, cache)}"
    with _locked(cache / f"{name}.lock"):
        if not _is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
            _list_of(path).unlink(missing_ok=True)
            path.mkdir()
            build(path)
            write_json(_list_of(path), _digests(path))
        os.utime(_list_of(path))
        _remove_old(cache, name)
    return path


def _key(sources: Sequence[str], ingredients: Sequence[Path], cache: Path) -> str:
    parts = [_digest_of_sources(sources), sha256_file(ROOT / "requirements.lock")]
    parts += [path.name for path in ingredients]
    parts += [platform.python_version(), str(hardware()["cpu"]), str(cache)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _digest_of_sources(sources: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        path = ROOT / source
        assert path.exists(), f"{source} has moved: name where it is now"
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0{sha256_file(file)}\0".encode())
    return digest.hexdigest()


def _list_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _digests(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): sha256_file(file) for file in files}


def _is_whole(path: Path) -> bool:
    """Whether every listed file is there and unchanged; more files do no harm, some folders hold caches."""
    try:
        listed = read_json(_list_of(path))
    except ArtefactError:
        return False
    return bool(listed) and all(
        (path / name).is_file() and sha256_file(path / name) == digest for name, digest in listed.items()
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_old(cache: Path, name: str) -> None:
    """Keep the newest folders of this name."""
    lists = [
        one for one in cache.iterdir() if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{16}}\.json", one.name)
    ]
    for old in sorted(lists, key=lambda one: one.stat().st_mtime)[:-NUM_KEPT]:
        old.unlink()
        shutil.rmtree(old.with_suffix(""), ignore_errors=True)

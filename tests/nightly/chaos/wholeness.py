"""Whether a repository is whole, whatever was interrupted in it; and a disk that can be filled."""

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET
from fruitstand.errors import FruitstandError
from fruitstand.repository.versions import LOADED_CONFIG, published_versions, serving_state, verify_version


def torn(repository: Path) -> list[str]:
    """What is not whole: versions are complete, and the configuration serves one that exists, or nothing."""
    found = []
    for number in published_versions(repository):
        try:
            verify_version(repository, number)
        except FruitstandError as exc:
            found.append(str(exc))
    state = serving_state(repository)
    if state is None:
        return found
    for model, path in (
        (FRUIT_RESNET, LOADED_CONFIG),
        (FRUIT_CLASSIFIER, f"{FRUIT_CLASSIFIER}/config.pbtxt"),
    ):
        config = text_format.Parse((repository / path).read_text(), model_config_pb2.ModelConfig())
        if state.version not in config.version_policy.specific.versions:
            found.append(f"{model} would not load version {state.version}")
        if not (repository / model / str(state.version)).is_dir():
            found.append(f"{model} has no version {state.version}")
    return found


def litter(*directories: Path) -> list[Path]:
    """Temporaries that were left behind."""
    return [path for directory in directories for path in directory.rglob(".tmp-*")]


def tree_sha256(directory: Path) -> str:
    """Of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def small_disk(directory: Path, size_mib: int) -> Iterator[str]:
    """A file system of our own that can be filled; why there is none, or nothing."""
    directory.mkdir(parents=True)
    if os.geteuid() != 0:
        yield "needs root to mount a tmpfs"
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(directory)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        yield f"cannot mount a tmpfs: {mounted.stderr.strip()}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", str(directory)], check=True)

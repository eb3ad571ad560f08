"""The backend folder of an embedded server: our own backend where it can be built, else two Python stubs.

Both have the names of NVIDIA's native backends, `dali` and `onnxruntime`, so that one model repository is
served here and in NVIDIA's container.
"""

import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fruitstand.contract import CPU_CONFIG, FRUIT_RESNET, HOST_CONFIG, IMAGE_DECODE
from fruitstand.errors import ServerError, UsageError
from serving.host import build

log = logging.getLogger("fruitstand.serve")

STUBS = Path(__file__).parents[1] / "backends"
PYTHON_BACKEND = ("libtriton_python.so", "triton_python_backend_utils.py")
BACKENDS_VARIABLE = "FRUITSTAND_BACKENDS"
HOST, STUB = "host", "stub"
DEFAULT_BACKENDS = HOST


@dataclass(frozen=True, kw_only=True, slots=True)
class Backends:
    """Which backends serve, and with which configuration."""

    kind: str
    """`host`, our own C++ backend inside the server, or `stub`, two processes of Triton's Python backend."""
    config_name: str
    """Of `configs/<name>.pbtxt`."""
    library: Path | None = None
    """Of the host."""


def choose_backends(
    repository: Path, config_name: str, environment: Mapping[str, str] = os.environ
) -> Backends:
    """The host where it can serve, else the stubs, with the reason in the log.

    Args:
        repository: the model repository.
        config_name: what was asked for; the host serves `cpu` alone.
        environment: FRUITSTAND_BACKENDS is `host` or `stub`.

    Raises:
        UsageError: FRUITSTAND_BACKENDS is something else.
    """
    wanted = environment.get(BACKENDS_VARIABLE) or DEFAULT_BACKENDS
    if wanted not in (HOST, STUB):
        raise UsageError(f"{BACKENDS_VARIABLE}: got {wanted!r}, allowed {HOST} or {STUB}")
    if wanted == STUB or config_name != CPU_CONFIG:
        return Backends(kind=STUB, config_name=config_name)
    reason = _unfit_repository(repository)
    if reason is None:
        try:
            library = build.library(environment.get(build.FLAGS_VARIABLE, "").split())
        except ServerError as exc:
            reason = str(exc)
        else:
            log.info("served by the embedded server's own backend, %s", library)
            return Backends(kind=HOST, config_name=HOST_CONFIG, library=library)
    log.warning("served by the slower Python stubs: %s", reason)
    return Backends(kind=STUB, config_name=config_name)


def _unfit_repository(repository: Path) -> str | None:
    """Why the host cannot serve a repository: an older release rendered it."""
    for model in (IMAGE_DECODE, FRUIT_RESNET):
        path = repository / model / "configs" / f"{HOST_CONFIG}.pbtxt"
        if not path.is_file():
            return f"{path.relative_to(repository)} is missing; 'fruitstand models promote' renders it"
    return None


def make_backend_directory(scratch: Path, backends: Backends) -> Path:
    """A backend folder as Triton wants it."""
    folder = scratch / "backends"
    if backends.library is not None:
        first, second = (folder / name / f"libtriton_{name}.so" for name in ("dali", "onnxruntime"))
        for path in (first, second):
            path.parent.mkdir(parents=True)
        shutil.copyfile(backends.library, first)
        # Two names for one file: opened twice it is one library, with one interpreter.
        os.link(first, second)
        return folder
    triton = installed_triton()
    shutil.copytree(STUBS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    python = folder / "python"
    python.mkdir()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    program = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    parts = (triton / "backends" / "python" / name for name in PYTHON_BACKEND)
    for part in (*parts, program):
        shutil.copyfile(part, python / part.name)  # Triton refuses symlinks
    (python / program.name).chmod(0o755)
    return folder


def installed_triton() -> Path:
    """The wheel's tritonserver folder, its programs made executable (installers drop that bit)."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files("nvidia-pytriton") or []
    except PackageNotFoundError as exc:
        raise ServerError(
            "nvidia-pytriton is not installed; install fruitstand with the serve-cpu extra"
        ) from exc
    binary = next(Path(str(path.locate())) for path in listed if path.name == "tritonserver")
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    return binary.parent.parent

"""The backend folder of an embedded server: our C++ backend if it can be built, else two Python stubs.

Both are named after NVIDIA's native backends, `dali` and `onnxruntime`, so that the same model repository is
served here and in NVIDIA's container.
"""

import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fruitstand.contract import CPU_CONFIG, HOST_CONFIG
from fruitstand.errors import ServerError, UsageError
from fruitstand.repository.model_names import repository_names
from serving.host import build
from serving.triton.child_process import installed_program

log = logging.getLogger("fruitstand.serve")

STUBS = Path(__file__).parents[1] / "backends"
PYTHON_BACKEND = ("libtriton_python.so", "triton_python_backend_utils.py")
BACKENDS_VARIABLE = "FRUITSTAND_BACKENDS"
HOST, STUB = "host", "stub"
DEFAULT_BACKENDS = HOST


@dataclass(frozen=True, kw_only=True, slots=True)
class Backends:
    """The chosen backends and their configuration."""

    kind: str
    """`host`: our C++ backend inside the server; `stub`: two processes of Triton's Python backend."""
    config_name: str
    """Name of `configs/<name>.pbtxt`."""
    library: Path | None = None
    """The host's shared library."""


def choose_backends(
    repositories: Sequence[Path], config_name: str, environment: Mapping[str, str] = os.environ
) -> Backends:
    """Choose the host if it can serve, else the stubs; the log says why.

    Raises:
        UsageError: FRUITSTAND_BACKENDS has another value.
    """
    wanted = environment.get(BACKENDS_VARIABLE) or DEFAULT_BACKENDS
    if wanted not in (HOST, STUB):
        raise UsageError(f"{BACKENDS_VARIABLE}: got {wanted!r}, allowed {HOST} or {STUB}")
    if wanted == STUB or config_name != CPU_CONFIG:
        return Backends(kind=STUB, config_name=config_name)
    reason = next(filter(None, map(_unfit_repository, repositories)), None)
    if reason is None:
        try:
            library = build.library(environment.get(build.FLAGS_VARIABLE, "").split())
        except ServerError as exc:
            reason = str(exc)
        else:
            log.info("serving with the embedded server's own backend, %s", library)
            return Backends(kind=HOST, config_name=HOST_CONFIG, library=library)
    log.warning("serving with the slower Python stubs: %s", reason)
    return Backends(kind=STUB, config_name=config_name)


def _unfit_repository(repository: Path) -> str | None:
    """Why the host cannot serve a repository that an older release rendered; None if it can."""
    names = repository_names(repository)
    for model in (names.decode, names.model):
        path = repository / model / "configs" / f"{HOST_CONFIG}.pbtxt"
        if not path.is_file():
            return f"{path.relative_to(repository)} is missing; 'fruitstand models promote' renders it"
    return None


def make_backend_directory(scratch: Path, backends: Backends) -> Path:
    """Lay out the backend folder for Triton."""
    folder = scratch / "backends"
    if backends.library is not None:
        first, second = (folder / name / f"libtriton_{name}.so" for name in ("dali", "onnxruntime"))
        for path in (first, second):
            path.parent.mkdir(parents=True)
        shutil.copyfile(backends.library, first)
        # A hard link: the loader recognises the file and loads one library with one interpreter.
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
    """The tritonserver folder of the wheel nvidia-pytriton."""
    return installed_program("nvidia-pytriton", "bin/tritonserver", extra="serve-cpu").parent.parent

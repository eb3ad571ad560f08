"""Build the C++ backend once per machine.

    python -m serving.host.build

prints the path of the library. Its name in the cache is a hash of the sources, the Python and the flags, so
that an image can carry the library to a machine without a compiler.
"""

import contextlib
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fruitstand.errors import ServerError

FOLDER = Path(__file__).parent / "cpp"
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-shared", "-pthread"),
    *("-Wall", "-Wextra", "-Werror"),
)
CACHE_VARIABLE = "FRUITSTAND_CACHE"
FLAGS_VARIABLE = "FRUITSTAND_HOST_FLAGS"
"""Variable with more compiler flags, for tests: -DFRUITSTAND_GATE, or -fsanitize=address, whose runtime
tritonserver has to preload."""
BUILD_TIMEOUT_S = 300.0


def library(more_flags: Sequence[str] = ()) -> Path:
    """Return the library's path; builds it if it is not in the cache.

    Raises:
        ServerError: the build failed, or lacks something; says what to install.
    """
    path = library_path(more_flags)
    if path.is_file():
        return path
    reason = missing()
    if reason is not None:
        raise ServerError(reason)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent):
            if not path.is_file():  # another process may have built it while this one waited
                _build(path, [*FLAGS, *more_flags])
    except OSError as exc:
        raise ServerError(
            f"{path.parent} cannot be written ({exc.strerror}); set {CACHE_VARIABLE} to a writable folder"
        ) from exc
    return path


def library_path(more_flags: Sequence[str] = ()) -> Path:
    """Path of the library, whether it is built or not.

    Raises:
        ServerError: there is no cache folder.
    """
    return cache_folder() / f"host-{_key([*FLAGS, *more_flags])}.so"


def missing() -> str | None:
    """What this machine lacks to build or run the library, and what to install; None if it has all."""
    if not _libpython():
        return (
            "this Python has no shared library: use one built with --enable-shared, such as Debian's or uv's"
        )
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return f"no Python.h: apt-get install python{sys.version_info.major}.{sys.version_info.minor}-dev"
    if compiler() is None:
        return "no C++ compiler: apt-get install g++"
    spec = importlib.util.find_spec("onnxruntime")
    if not (spec and list(Path(str(spec.origin)).parent.glob("capi/libonnxruntime.so.*"))):
        return "the installed onnxruntime has no libonnxruntime.so: install the serve-cpu extra"
    return None


def compiler() -> str | None:
    """The C++ compiler: CXX, else g++ or clang++."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["g++", "clang++"])), None)


def cache_folder() -> Path:
    """The folder for built libraries: FRUITSTAND_CACHE, else the user's cache.

    Raises:
        ServerError: the user has no home folder, for example in a container.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fruitstand"
    except RuntimeError as exc:
        raise ServerError(f"no home folder for the build's cache; set {CACHE_VARIABLE} to a folder") from exc


def _libpython() -> str:
    """Name of Python's shared library without `lib` and `.so`; empty if there is none."""
    name = str(sysconfig.get_config_var("LDLIBRARY") or "")
    return name.removeprefix("lib").removesuffix(".so") if name.endswith(".so") else ""


def _sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cc"))


def _key(flags: Sequence[str]) -> str:
    """Hash of everything that the library depends on: sources, Python and flags."""
    digest = hashlib.sha256()
    for path in [*_sources(), *sorted(FOLDER.glob("*.h"))]:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    python = (platform.machine(), *importlib.machinery.EXTENSION_SUFFIXES[:1], _libpython())
    digest.update("\0".join((*python, *flags)).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process build at a time: several servers may start together."""
    with (folder / "host.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(path: Path, flags: Sequence[str]) -> None:
    """Compile all sources as one unit, in a third of the time, and move the library into place."""
    cxx = str(compiler())
    unit = "".join(f'#include "{source.name}"\n' for source in _sources())
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        # Triton's symbols stay undefined: tritonserver supplies them, and its library has another name in
        # each wheel.
        command = [
            *(cxx, *flags, f"-I{FOLDER}", f"-I{sysconfig.get_paths()['include']}", "-x", "c++", "-"),
            *("-o", str(made), f"-L{sysconfig.get_config_var('LIBDIR')}", f"-l{_libpython()}", "-ldl"),
        ]
        done = subprocess.run(
            command, input=unit, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [
                f"status {done.returncode}"
            ]
            raise ServerError(f"{Path(cxx).name} cannot build {FOLDER}: {lines[0]}")
        made.replace(path)


if __name__ == "__main__":
    print(library(sys.argv[1:]))

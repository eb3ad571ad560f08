"""Install each peer's own environment from requirements pinned by hash, and resolve these again."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.catalogue import ENVIRONMENTS, REQUIREMENTS
from fruitstand.errors import UsageError

PLATFORM = ("--python-platform", "x86_64-manylinux_2_35", "--python-version", "3.11")


def install(name: str) -> Path:
    """Install an environment unless it is up to date; returns its folder of programs.

    Raises:
        UsageError: uv is missing, or a package cannot be installed.
    """
    folder, wanted = ENVIRONMENTS / name, REQUIREMENTS / f"{name}.txt"
    installed = folder / wanted.name
    if not installed.is_file() or installed.read_bytes() != wanted.read_bytes():
        _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
        python = str(folder / "bin" / "python")
        _uv("pip", "sync", "--quiet", "--require-hashes", "--python", python, str(wanted))
        shutil.copy(wanted, installed)
    return folder / "bin"


def lock() -> None:
    """Resolve all requirements again."""
    for wanted in sorted(REQUIREMENTS.glob("*.in")):
        _uv(
            *("pip", "compile", "--quiet", "--upgrade", *PLATFORM, "--generate-hashes"),
            *("--no-emit-index-url", "--no-emit-find-links"),
            *("--custom-compile-command", "python -m benchmarks.peers --lock"),
            *(str(wanted), "-o", str(wanted.with_suffix(".txt"))),
        )


def _uv(*arguments: str) -> None:
    program = Path(sys.executable).with_name("uv")
    try:
        subprocess.run([str(program), *arguments], check=True, capture_output=True, text=True)
    except OSError as exc:
        raise UsageError("uv is not installed; 'make setup' installs it") from exc
    except subprocess.CalledProcessError as exc:
        raise UsageError(f"uv {' '.join(arguments[:2])} failed: {exc.stderr.strip()[-300:]}") from exc

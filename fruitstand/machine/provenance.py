"""The provenance of an artefact or a measurement: machine, commit, lock, date, command."""

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

from fruitstand.artefacts import sha256_file
from fruitstand.machine.threads import thread_budget


def hardware() -> dict[str, object]:
    """CPU model, cores this process may use, memory, architecture, and GPUs if there are any; JSON-ready."""
    gpus = _gpus()
    return {
        "cpu": _cpu_model(),
        "num_cores": thread_budget(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "machine": platform.machine(),
        **({"gpus": gpus} if gpus else {}),
    }


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU from nvidia-smi; empty without nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def git_commit(directory: Path) -> str | None:
    """The commit of the checkout around `directory`, with "+" if it has changes; None outside a checkout."""
    command = ["git", "-C", str(directory), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def lock_sha256(directory: Path) -> str | None:
    """The sha256 of the checkout's lock file, as hex; None outside a checkout."""
    path = directory / "requirements.lock"
    return sha256_file(path) if path.is_file() else None


def provenance() -> dict[str, object]:
    """Hardware, date, commit and command of this process; every result file carries them."""
    return {
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(Path(__file__).parent),
        # Absolute paths are cut to their last part, because results are published.
        "command": shlex.join(
            [
                "python",
                "-m",
                _module(),
                *(re.sub(r"(^|=)/\S*/", r"\1", word) for word in sys.argv[1:]),
            ]
        ),
    }


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name

"""What machine this is, for the record of whatever was made or measured on it."""

import os
import platform
import subprocess
from pathlib import Path

from fruitstand.machine.threads import thread_budget


def hardware() -> dict[str, object]:
    """Processor, cores this process may use, memory, architecture and GPUs if there are any, JSON-ready."""
    gpus = _gpus()
    return {
        "cpu": _cpu_model(),
        "num_cores": thread_budget(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "machine": platform.machine(),
        **({"gpus": gpus} if gpus else {}),
    }


def _gpus() -> list[str]:
    """Name, memory and driver of each, as nvidia-smi says them; none without it."""
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

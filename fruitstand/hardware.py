"""What machine this is, for the record of whatever was made or measured on it."""

import os
import platform
from pathlib import Path

from fruitstand.threads import thread_budget


def hardware() -> dict[str, object]:
    """Processor, cores this process may use, memory and architecture, JSON-ready."""
    return {
        "cpu": _cpu_model(),
        "num_cores": thread_budget(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "machine": platform.machine(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"

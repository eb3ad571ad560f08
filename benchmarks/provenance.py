"""Where, when and how a number was measured."""

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path

from fruitstand.checkout import git_commit


def provenance() -> dict[str, object]:
    """Hardware, date, commit and command of this process, as every result file carries them."""
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "num_cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "machine": platform.machine(),
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(Path(__file__).parent),
        # Of an absolute path only its last part: where a machine keeps its data is nobody's business.
        "command": shlex.join(
            [
                "python",
                "-m",
                _module(),
                *(Path(word).name if word[:1] == "/" else word for word in sys.argv[1:]),
            ]
        ),
    }


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"

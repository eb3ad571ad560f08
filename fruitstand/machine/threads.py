"""The thread budget: how many threads this process may run at the same time.

`fruitstand serve` puts it into the server's environment. Decode and inference read it there if their
configuration sets no number. All other code that needs the number of cores uses it too.
"""

import math
import os
from pathlib import Path

from fruitstand.errors import UsageError

THREADS_VARIABLE = "FRUITSTAND_THREADS"
_LIBRARY_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
CGROUP = Path("/sys/fs/cgroup")


def thread_budget() -> int:
    """Threads that can run at the same time: FRUITSTAND_THREADS, else affinity and the cgroup's quota.

    Raises:
        UsageError: FRUITSTAND_THREADS is not a positive whole number.
    """
    told = os.environ.get(THREADS_VARIABLE)
    if told is not None:
        if not told.isdecimal() or int(told) < 1:
            raise UsageError(f"{THREADS_VARIABLE}: got {told!r}, allowed a positive whole number")
        return int(told)
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), cgroup_cpus())))


def cgroup_cpus(root: Path = CGROUP) -> float:
    """Cores that the cgroup's CPU quota allows; infinite without a quota.

    Source:
        Linux `Documentation/admin-guide/cgroup-v2.rst` (cpu.max), `scheduler/sched-bwc.rst` (version 1).
    """
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def thread_environment(budget: int) -> dict[str, str]:
    """Environment variables that set the budget of a process and of its libraries."""
    return dict.fromkeys((THREADS_VARIABLE, *_LIBRARY_VARIABLES), str(budget))

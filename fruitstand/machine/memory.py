"""Memory of this machine or container, and memory that a process uses."""

import os
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_budget_mib() -> float:
    """Memory of the machine, or the container's limit if that is smaller, MiB.

    Source:
        Linux `Documentation/admin-guide/cgroup-v2.rst` (memory.max), `cgroup-v1/memory.rst`.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [machine]
    for path in _LIMITS:
        try:
            text = path.read_text("ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            limits.append(int(text))
    return min(limits) / 2**20


def process_tree(pid: int) -> list[int]:
    """Process ids of a process and all its descendants that still run."""
    found, unseen = [], [pid]
    while unseen:
        pid = unseen.pop()
        try:
            children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        except OSError:
            continue
        found.append(pid)
        unseen += [int(child) for group in children for child in group]
    return found


def resident_mib(pid: int) -> float:
    """Resident memory of a process and all its descendants, MiB."""
    return sum(map(own_mib, process_tree(pid)))


def own_mib(pid: int) -> float:
    """Resident memory of a process, MiB; 0 if it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

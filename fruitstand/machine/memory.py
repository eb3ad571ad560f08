"""How much memory this machine, or this container, has, and how much of it a process takes."""

import os
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_budget_mib() -> float:
    """What the container may have, at most the machine's memory, MiB.

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
    """A process and everything below it, as far as it still runs."""
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
    """Memory of a process and everything below it, MiB."""
    return sum(map(own_mib, process_tree(pid)))


def own_mib(pid: int) -> float:
    """Memory of a process alone, MiB; 0 when it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

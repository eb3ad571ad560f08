"""Load a model at the lowest priority, where there is a way back: another one answers meanwhile."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOWEST = 19
CAP_SYS_NICE = 23
"""Source: Linux `include/uapi/linux/capability.h`."""


@contextmanager
def in_the_background() -> Iterator[None]:
    """Every thread of this process, those that the block starts too, gives way to others.

    Linux lets everybody lower a priority, but only some raise it again (RLIMIT_NICE, CAP_SYS_NICE): who may
    not stays as it is, for answers at the lowest priority would be worse than a load beside them.
    """
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if not may_raise_to(usual):
        yield
        return
    _set_niceness(LOWEST)
    try:
        yield
    finally:
        _set_niceness(usual)


def may_raise_to(niceness: int) -> bool:
    """Whether this process could return to a niceness.

    Source:
        Linux `setpriority(2)` and `getrlimit(2)`: RLIMIT_NICE is 20 minus the niceness.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    if limit == resource.RLIM_INFINITY or limit >= 20 - niceness:
        return True
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:")
    )
    return bool(int(line.split()[1], 16) >> CAP_SYS_NICE & 1)


def _set_niceness(niceness: int) -> None:
    """Of all threads: in Linux each has its own, which it inherits from the one that started it."""
    changed = True
    while changed:  # a thread may start another before its own turn
        changed = False
        for thread in map(int, os.listdir("/proc/self/task")):
            try:
                if os.getpriority(os.PRIO_PROCESS, thread) != niceness:
                    os.setpriority(os.PRIO_PROCESS, thread, niceness)
                    changed = True
            except ProcessLookupError:
                continue

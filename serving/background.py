"""Load a version with a low priority, where there is a way back: another one answers meanwhile."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("fruitstand.backend")

NICENESS = 10
"""A tenth of the time that others at the usual priority get, of a core that all want."""


@contextmanager
def in_the_background() -> Iterator[None]:
    """This thread, and those that the block starts, give way to others.

    Linux lets everybody lower a priority, but only some raise it again (RLIMIT_NICE, CAP_SYS_NICE): who may
    not stays as it is, for answers with a low priority would be worse than a load beside them.
    """
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if usual >= NICENESS or not can_return():
        log.info("the load keeps its priority: there is no way back from a lower one")
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)  # of this thread: in Linux each has its own
    try:
        yield
    finally:
        _raise_threads(usual)


def is_beside_another(instance: str) -> bool:
    """Whether this server has another process for an instance of this name: one that answers meanwhile.

    Triton loads every version again when the list of them changes, the served one as well. Each server has a
    folder of its own for the program of these processes, and names the instance among its arguments.
    """
    own = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if path.parent.name != str(os.getpid()) and words[0] == own[0] and instance.encode() in words:
            return True
    return False


def can_return() -> bool:
    """Whether a thread that lowered its priority may raise it again; one that ends then tries it.

    Source:
        Linux `setpriority(2)`: it takes RLIMIT_NICE, or CAP_SYS_NICE in the first user namespace.
    """
    returned = []

    def go_and_return() -> None:
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, usual + 1)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, usual)
        except PermissionError:
            return
        returned.append(True)

    thread = threading.Thread(target=go_and_return)
    thread.start()
    thread.join()
    return bool(returned)


def _raise_threads(niceness: int) -> None:
    """All that have a lower priority: they inherited it."""
    lower = True
    while lower:  # one may start another before its own turn
        lower = False
        for thread in map(int, os.listdir("/proc/self/task")):
            try:
                if os.getpriority(os.PRIO_PROCESS, thread) > niceness:
                    os.setpriority(os.PRIO_PROCESS, thread, niceness)
                    lower = True
            except ProcessLookupError:
                continue

"""Work that gives way to a server that answers meanwhile: with rests, or in idle time."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("fruitstand.backend")

IDLE, USUAL = os.SCHED_IDLE, os.SCHED_OTHER
NICENESS = os.environ.get("FRUITSTAND_NICENESS")
"""The usual one, where serving/stub.sh started this process with a higher one."""
PATIENCE_S = 10.0
"""Then the load goes on as usual: on a machine without idle time, as when a slow version is rolled back."""


WORK_S, REST_S = 0.004, 0.016
"""A fifth of a core; the kernel counts work in ticks, mostly of 1 or 4 ms."""


@contextmanager
def with_rests() -> Iterator[None]:
    """The main thread rests four times as long as it computes, for a server on the same machine.

    Idle time would not do for what takes a tenth of a second or more: a core that computes for it is never
    idle, and Linux only lets an idle core fetch what waits at another.
    """

    def rest(*_: object) -> None:
        time.sleep(REST_S)

    before = signal.signal(signal.SIGPROF, rest)
    signal.setitimer(signal.ITIMER_PROF, WORK_S, WORK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # drops one that is still on its way: it would end us
        signal.signal(signal.SIGPROF, before)


@contextmanager
def in_the_background() -> Iterator[None]:
    """This thread, and those that the block starts, compute when nobody else wants the core.

    A low niceness would not do: Linux lets such a thread finish its slice of 3 ms before one that wakes up,
    and a request wakes a dozen. Everybody may leave the usual scheduling, but only some return to it
    (RLIMIT_NICE, CAP_SYS_NICE): who may not stays as it is, for answers in idle time would be worse than a
    load beside them.
    """
    if os.sched_getscheduler(0) != USUAL or not can_return():
        log.debug("the load keeps its priority: there is no way back from a lower one")
        yield
        return
    patience = threading.Timer(PATIENCE_S, as_usual)
    patience.start()
    _schedule(0, IDLE)  # this thread: in Linux each has its own
    try:
        yield
    finally:
        patience.cancel()
        as_usual()


def for_good() -> None:
    """All threads of this process compute in idle time from now on, for it ends: that is work as well."""
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):
            _schedule(thread, IDLE)


def as_usual() -> None:
    """All threads that give way return: they inherited it."""
    idle = True
    while idle:  # one may start another before its own turn
        idle = False
        for thread in map(int, os.listdir("/proc/self/task")):
            try:
                if os.sched_getscheduler(thread) == IDLE:
                    _schedule(thread, USUAL)
                    idle = True
                if NICENESS is not None:
                    os.setpriority(os.PRIO_PROCESS, thread, int(NICENESS))
            except ProcessLookupError:
                continue


def is_beside_another(instance: str) -> bool:
    """Whether this server has another process for an instance of this name: one that answers meanwhile.

    Each server has a folder of its own for the program of these processes, and names the instance among its
    arguments.
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
    """Whether a thread may return to the usual scheduling; one that ends then tries it.

    Source:
        Linux `sched(7)`: it takes RLIMIT_NICE, or CAP_SYS_NICE in the first user namespace.
    """
    returned = []

    def go_and_return() -> None:
        _schedule(0, IDLE)
        try:
            _schedule(0, USUAL)
        except PermissionError:
            return
        returned.append(True)

    thread = threading.Thread(target=go_and_return)
    thread.start()
    thread.join()
    return bool(returned)


def _schedule(thread: int, policy: int) -> None:
    os.sched_setscheduler(thread, policy, os.sched_param(0))

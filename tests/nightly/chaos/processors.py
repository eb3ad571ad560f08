"""Servers on one half of the processors, gateway and callers on the other: neither slows the other down."""

import os
from pathlib import Path

from fruitstand.machine.memory import process_tree
from tests.nightly.chaos.stack import Stack


def share_processors(stack: Stack) -> bool:
    """Bind all threads of the stack's processes; whether there were two processors to share.

    The callers live in this process, which is left where it is: they take what the gateway leaves.
    """
    every = sorted(os.sched_getaffinity(0))
    if len(every) < 2:
        return False
    half = len(every) // 2
    for number in range(len(stack.replicas)):
        _bind(process_tree(stack.replica_pid(number)), set(every[:half]))
    _bind([stack.gateway_pid()], set(every[half:]))
    return True


def _bind(pids: list[int], processors: set[int]) -> None:
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("[0-9]*"):
            os.sched_setaffinity(int(task.name), processors)

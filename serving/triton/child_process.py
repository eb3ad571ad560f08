"""Start a server's process that cannot outlive us, and know where from it can start."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from serving.triton import launch


def start_process(
    command: Sequence[str], *, env: dict[str, str] | None, log_path: Path | None
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own; the kernel ends it when our process is killed.

    Call it from a thread that lives as long as the program: Linux ties the two together, not the processes.

    Args:
        command: the program's path and its arguments; no shell sees them.
        env: its environment; None is ours.
        log_path: appended to; None is our stderr.
    """
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
    with open(log_path, "ab") if log_path else nullcontext() as log:
        return subprocess.Popen(
            [*launcher, *command],
            env=env,
            stdout=log or sys.stderr,
            stderr=log or sys.stderr,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def forbids_programs(folder: Path) -> bool:
    """Whether a folder's file system is mounted noexec: neither programs nor libraries start from it."""
    return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)

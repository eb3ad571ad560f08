"""Start server processes that cannot outlive this process."""

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
    """Start a program in its own session; the kernel terminates it when this process is killed.

    Call it from a thread that lives as long as the program: Linux ties the program to that thread, not to the
    process.

    Args:
        command: the program's path and its arguments; no shell is involved.
        env: its environment; None inherits this process's.
        log_path: file to append its output to; None writes to this process's stderr.
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
    """Whether a folder is on a file system mounted noexec, which can run neither programs nor libraries."""
    return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)

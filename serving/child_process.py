"""Start a server's process that cannot outlive us."""

import ctypes
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

PR_SET_PDEATHSIG = 1
MAX_OPEN_FILES = 16_384
"""Of one process, connections among them: more than a gateway lets in, and a bound on a leak."""


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
    # Looked up before the fork: afterwards only async-safe calls are allowed.
    prctl = ctypes.CDLL(None).prctl
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, most)

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with open(log_path, "ab") if log_path else nullcontext() as log:
        return subprocess.Popen(
            list(command),
            env=env,
            stdout=log or sys.stderr,
            stderr=log or sys.stderr,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=prepare,
        )

"""Execute a program that the kernel terminates when the process that started it is gone.

    python launch.py PID PROGRAM [ARGUMENT ...]

PID is the parent process. This is a program of its own instead of a `preexec_fn`: gRPC's fork handlers run
between fork and exec, and now and then they abort the child while calls are in flight.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
MAX_OPEN_FILES = 16_384
"""Limit of open files and connections: above the gateway's connection limit, and a bound on leaks."""

if __name__ == "__main__":
    starter, program = int(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != starter:  # the parent is gone already, no signal will come
        sys.exit(1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    for number in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ):  # Python ignores these, and the program would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, sys.argv[2:])
    except OSError as exc:
        print(f"E {os.path.basename(program)} cannot be executed: {exc.strerror}", file=sys.stderr)
        sys.exit(127)

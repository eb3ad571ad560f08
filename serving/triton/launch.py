"""Become a program that the kernel ends when whoever started it is gone.

    python launch.py PID PROGRAM [ARGUMENT ...]

PID is the starter's. A program of its own, and not what runs between fork and exec in a copy of the starter:
gRPC's fork handlers run there, and where calls are under way they abort the copy now and then.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
MAX_OPEN_FILES = 16_384
"""Of one process, connections among them: more than a gateway lets in, and a bound on a leak."""

if __name__ == "__main__":
    starter, program = int(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != starter:  # gone already: no signal will come
        sys.exit(1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, sys.argv[2:])
    except OSError as exc:
        print(f"E {os.path.basename(program)} cannot be executed: {exc.strerror}", file=sys.stderr)
        sys.exit(127)

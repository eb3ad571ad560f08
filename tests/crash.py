"""Run export and publish in children that can be killed at any moment.

    python -m tests.crash RUN REPOSITORY

Reads lines from stdin, `export SECONDS` or `publish SECONDS`: forks a child that does it, kills it with
SIGKILL after so many seconds (0: lets it finish), and prints one JSON line with its end and how long it took.
The imports are paid once: the moments are spread over the work and not over the start of Python.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from fruitstand.errors import FruitstandError


def main() -> None:
    """Fork one child a line."""
    run, repository = Path(sys.argv[1]), Path(sys.argv[2])
    # What the child needs, so that every child starts with it; no session or pool may be open when it forks.
    import export.candidate
    import export.publish
    from export.export import export
    from export.publish import publish

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        action, seconds = line.split()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the child ends by _exit
            try:
                if action == "export":
                    export(run, repository=repository, variants=("fp32",), data_directory=None)
                else:
                    publish(repository, run / "export")
            except (FruitstandError, OSError) as exc:
                os.write(1, (json.dumps({"error": str(exc)}) + "\n").encode())
                os._exit(1)
            os._exit(0)
        status = _wait(child, float(seconds))
        print(json.dumps({"status": status, "seconds": time.monotonic() - started}), flush=True)


def _wait(child: int, limit_s: float) -> int:
    """The child's exit status, negative for a signal; killed with its own children when it takes longer."""
    deadline = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG if limit_s else 0)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.001)


if __name__ == "__main__":
    main()

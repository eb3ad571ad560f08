"""Run export, publish, promote and prune in children that can be killed at any moment.

    python -m tests.crash RUN

Reads JSON lines from stdin, `{"action": ..., "repository": ..., "limit_s": ...}`: forks a child that does it,
kills it with SIGKILL after so many seconds (0: lets it finish), and prints one JSON line with its end and how
long it took. The imports are paid once: the moments are spread over the work, not over the start of Python.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from fruitstand.errors import FruitstandError
from fruitstand.versions import published_versions, serving_state


def main() -> None:
    """Fork one child a line."""
    run = Path(sys.argv[1])
    # What the child needs, so that every child starts with it; no session or pool may be open when it forks.
    import export.candidate
    import export.export
    import export.promote
    import export.publish  # noqa: F401

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the child ends by _exit
            try:
                _do(wanted["action"], run, Path(wanted["repository"]))
            except (FruitstandError, OSError) as exc:
                os.write(1, (json.dumps({"error": str(exc)}) + "\n").encode())
                os._exit(1)
            os._exit(0)
        status = _wait(child, wanted["limit_s"])
        print(json.dumps({"status": status, "seconds": time.monotonic() - started}), flush=True)


def _do(action: str, run: Path, repository: Path) -> None:
    from export.export import export
    from export.promote import promote, rollback
    from export.publish import publish
    from export.repository import prune

    if action == "export":
        export(run, repository=repository, variants=("fp32", "int8"), data_directory=None)
    elif action == "publish":
        publish(repository, run / "export")
    elif action == "promote":
        state = serving_state(repository)
        assert state is not None
        promote(repository, next(n for n in published_versions(repository) if n != state.version), url=None)
    elif action == "rollback":
        rollback(repository, url=None)
    else:
        prune(repository, keep=0)


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
        time.sleep(0.0002)


if __name__ == "__main__":
    main()

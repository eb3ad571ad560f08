"""Run export, publish, promote, rollback and prune in children that can be killed at any moment.

    python -m tests.crash

Reads JSON lines from stdin, with the keys that `Crasher.run` writes. Forks a child that does it, and prints
one JSON line with its end and how long it took. The child is killed with SIGKILL after `limit_s` seconds, or
just before it changes the file system for the `kill_at`-th time (0: not at all); a child that ends says how
often it did. The imports are paid once: the moments are spread over the work, not over the start of Python.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET
from fruitstand.errors import FruitstandError
from fruitstand.versions import published_versions, serving_state, verify_version

ANY_SPEED = 1e3
"""Crashes are the subject here; how fast a busy machine is is not."""
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


class Crasher:
    """The process of `main`, from the test's side."""

    def __init__(self, scratch: Path) -> None:
        """Start it; `scratch` takes the place of the system's folder for temporary files."""
        self.scratch = scratch
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        self._read()

    def run(
        self,
        action: str,
        repository: Path,
        run: Path | None = None,
        *,
        limit_s: float = 0,
        kill_at: int = 0,
        url: str | None = None,
    ) -> dict:
        """Do it, perhaps killed on the way; how it ended."""
        assert self._process.stdin is not None
        wanted = {
            "action": action,
            "repository": str(repository),
            "run": str(run),
            "limit_s": limit_s,
            "kill_at": kill_at,
            "url": url,
        }
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        result: dict = {}
        while "status" not in result:
            result |= self._read()
        return result

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def _read(self) -> dict:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def assert_whole(repository: Path) -> None:
    """Every version is complete, and the configuration serves one that exists, or nothing at all."""
    for number in published_versions(repository):
        verify_version(repository, number)
    state = serving_state(repository)
    if state is None:
        return
    for model in (FRUIT_RESNET, FRUIT_CLASSIFIER):
        text = (repository / model / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert state.version in config.version_policy.specific.versions
        assert (repository / model / str(state.version)).is_dir()


def litter(*directories: Path) -> list[Path]:
    """Temporaries that were left behind."""
    return [path for directory in directories for path in directory.rglob(".tmp-*")]


def main() -> None:
    """Fork one child a line."""
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
            changes = _Changes(wanted["kill_at"])
            try:
                _do(wanted["action"], Path(wanted["repository"]), Path(wanted["run"]), wanted["url"])
            except (FruitstandError, OSError) as exc:
                os.write(1, (json.dumps({"error": str(exc)}) + "\n").encode())
                os._exit(1)
            except Exception as exc:  # an error that nobody translated: no child ends with this status
                os.write(1, (json.dumps({"untranslated": repr(exc)}) + "\n").encode())
                os._exit(3)
            os.write(1, (json.dumps({"changes": changes.count}) + "\n").encode())
            os._exit(0)
        status = _wait(child, wanted["limit_s"])
        print(json.dumps({"status": status, "seconds": time.monotonic() - started}), flush=True)


class _Changes:
    """Counts what this process changes in the file system, and kills it just before one of the changes."""

    def __init__(self, kill_at: int) -> None:
        self.count = 0
        self._kill_at = kill_at
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in _CHANGES or (event == "open" and arguments[2] & writes):
            self.count += 1
            if self.count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def _do(action: str, repository: Path, run: Path, url: str | None) -> None:
    from export.export import export
    from export.promote import promote, rollback
    from export.publish import publish
    from export.repository import prune

    if action == "export":
        variants = ("fp32", "int8")
        export(run, repository=repository, variants=variants, data_directory=None, max_slowdown=ANY_SPEED)
    elif action == "publish":
        publish(repository, run / "export", max_slowdown=ANY_SPEED)
    elif action == "promote":
        state = serving_state(repository)
        assert state is not None
        promote(repository, next(n for n in published_versions(repository) if n != state.version), url=url)
    elif action == "rollback":
        rollback(repository, url=url)
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

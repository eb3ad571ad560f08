"""Run commands in children that are killed, or whose disk fails, at any moment.

    python -m tests.crash

Reads JSON lines from stdin, with the keys that `Crasher.run` writes. Forks a child that runs the command, and
prints one JSON line with its end and how long it took. The child is killed with SIGKILL after `limit_s`
seconds, or just before it changes the file system for the `at`-th time (0: not at all); with an `error` that
change fails with it instead. The imports are paid once: the moments are spread over the work, not over the
start of Python.
"""

import errno
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PRELOADED = (
    "fruitstand.cli",
    "export.publish.candidate",
    "export.publish.export",
    "export.publish.promote",
    "export.publish.publish",
)
"""What the commands import; no session, pool or channel may be open when a child is forked."""


class Crasher:
    """The process of `main`, from the caller's side; a context."""

    def __init__(self, scratch: Path) -> None:
        """Start it; `scratch` takes the place of the system's folder for temporary files."""
        self.scratch = scratch
        torch_cache = str(Path(tempfile.gettempdir()) / "torchinductor")  # made by the import of torch
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(scratch), "TORCHINDUCTOR_CACHE_DIR": torch_cache},
        )
        self._read()

    def __enter__(self) -> "Crasher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *words: object, limit_s: float = 0, at: int = 0, error: str = "") -> dict[str, Any]:
        """Run `fruitstand WORDS`, perhaps killed on the way.

        Args:
            words: of the command line.
            limit_s: kill it after so many seconds; 0: never.
            at: number of the change of the file system before which it is killed, from 1; 0: none.
            error: such as "EIO": that change fails instead, and every one after it.

        Returns:
            `status`, negative for a signal; `seconds`; `changes` of a child that was not killed; its
            `stderr`.
        """
        assert self._process.stdin is not None
        wanted = {"words": list(map(str, words)), "limit_s": limit_s, "at": at, "error": error}
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return self._read()

    def do(
        self, action: str, repository: Path, run: Path | None = None, *, kill_at: int = 0,
        limit_s: float = 0, url: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Export, publish, promote, rollback or prune, perhaps killed on the way; returns what `run` does."""
        words = [*_words(action, repository, run), *(["--url", url] if url else [])]
        return self.run(*words, "--repository", repository, limit_s=limit_s, at=kill_at)

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


def _words(action: str, repository: Path, run: Path | None) -> list[object]:
    from fruitstand.repository.versions import published_versions, serving_state
    from tests.nightly.chaos.material import ANY_SPEED

    if action == "export":
        return ["export", "--run", run, "--variants", "fp32,int8", "--max-slowdown", ANY_SPEED]
    if action == "publish":
        assert run is not None
        return ["models", "publish", run / "export", "--max-slowdown", ANY_SPEED]
    if action == "promote":
        state = serving_state(repository)
        assert state is not None
        other = next(number for number in published_versions(repository) if number != state.version)
        return ["models", "promote", other]
    return ["models", action, *(["--keep", 0] if action == "prune" else [])]


def assert_whole(repository: Path) -> None:
    """Every version is complete, and the configuration serves one that exists, or nothing at all."""
    from tests.nightly.chaos.wholeness import torn

    assert torn(repository) == []


def main() -> None:
    """Fork one child a line."""
    sys.dont_write_bytecode = True  # a module's first import would count as changes of the command
    for name in _PRELOADED:
        importlib.import_module(name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        # Not below the folder for temporary files: that one has to be empty afterwards.
        with (
            tempfile.TemporaryFile(dir="/dev/shm") as told,
            tempfile.TemporaryFile(dir="/dev/shm") as counted,
        ):
            started = time.monotonic()
            child = os.fork()
            if child == 0:
                _child(wanted, told.fileno(), counted.fileno())
            status = _wait(child, wanted["limit_s"])
            seconds = time.monotonic() - started
            result = {"status": status, "seconds": seconds, "stderr": _content(told)}
            if changes := _content(counted):
                result["changes"] = int(changes)
        print(json.dumps(result), flush=True)


def _content(file: Any) -> str:
    file.seek(0)
    return str(file.read(), "utf-8", "replace")


def _child(wanted: dict[str, Any], told: int, counted: int) -> None:
    """Run the command; does not return."""
    os.setpgid(0, 0)
    os.dup2(told, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    changes = _Changes(wanted["at"], wanted["error"])
    sys.argv = ["fruitstand", *wanted["words"]]
    status = 1
    try:
        runpy.run_module("fruitstand", run_name="__main__")
        status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    changes.number += 1_000_000  # what follows is not the command's
    os.write(counted, str(changes.count).encode())
    os._exit(status)


class _Changes:
    """Counts what this process changes in the file system, and fails or kills it at one of the changes."""

    def __init__(self, at: int, error: str) -> None:
        self.count, self.number = 0, at
        self._error = getattr(errno, error) if error else 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES and not (event == "open" and arguments[2] & _WRITES):
            return
        self.count += 1
        if not self.number:
            return
        if self._error and self.count >= self.number and event != "os.remove":
            raise OSError(self._error, os.strerror(self._error))
        if not self._error and self.count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


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

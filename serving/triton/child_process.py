"""Start and stop server processes, which cannot outlive this process, and find their programs."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from fruitstand.errors import ServerError
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


def stop_process(process: "subprocess.Popen[bytes]", *, timeout_s: float) -> None:
    """Terminate a program of `start_process`, then kill its process group; with a timeout of 0 at once."""
    if timeout_s > 0 and process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def installed_program(distribution: str, ending: str, *, extra: str) -> Path:
    """Find a program in an installed wheel, and make it executable (installers drop that bit).

    Raises:
        ServerError: the wheel is not installed; names the extra of fruitstand that contains it.
    """
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files(distribution) or []
    except PackageNotFoundError as exc:
        raise ServerError(
            f"{distribution} is not installed; install fruitstand with the {extra} extra"
        ) from exc
    program = next(Path(str(path.locate())) for path in listed if str(path).endswith(ending))
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    return program


def forbids_programs(folder: Path) -> bool:
    """Whether a folder is on a file system mounted noexec, which can run neither programs nor libraries."""
    return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)

"""Servers are started while calls are under way, and end with whoever started them."""

import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from serving.triton.child_process import start_process
from serving.triton.launch import MAX_OPEN_FILES
from tests.model_server import KillableServer

STARTS = 40
"""With what ran between fork and exec before, 23 of 100 were aborted."""


def test_every_program_starts_beside_calls(tmp_path: Path) -> None:
    """GRPC's fork handlers, which abort a forked copy now and then, have no part in it."""
    server, stopped = KillableServer(), threading.Event()

    def call() -> None:
        while not stopped.is_set():
            with triton.InferenceServerClient(server.url) as client, pytest.raises(InferenceServerException):
                client.is_server_live()  # which this server does not know: a call all the same

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    log = tmp_path / "log"
    try:
        ends = [start_process(["/bin/true"], env=None, log_path=log).wait(20) for _ in range(STARTS)]
    finally:
        stopped.set()
        for caller in callers:
            caller.join()
        server.kill()
    assert ends == [0] * STARTS
    assert log.read_bytes() == b""


def test_it_gets_a_limit_of_open_files_and_the_usual_signals(tmp_path: Path) -> None:
    """Not ours: Python ignores SIGPIPE, and what is ignored is inherited."""
    log = tmp_path / "log"
    source = "ulimit -n; grep SigIgn /proc/self/status"
    assert start_process(["/bin/sh", "-c", source], env=None, log_path=log).wait(20) == 0
    files, _, ignored = log.read_text().split()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert int(files) == (MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, most))
    # Others may be ignored by whoever started us, and stay so.
    assert int(ignored, 16) & sum(1 << (one - 1) for one in (signal.SIGPIPE, signal.SIGXFSZ)) == 0


def test_what_cannot_be_executed_is_one_line(tmp_path: Path) -> None:
    """As an error of the log, which names no path."""
    log, program = tmp_path / "log", tmp_path / "program"
    program.write_text("")
    assert start_process([str(program)], env=None, log_path=log).wait(20) == 127
    assert log.read_text() == "E program cannot be executed: Permission denied\n"


@pytest.mark.parametrize("runs", [True, False])
def test_it_ends_with_its_starter(*, runs: bool) -> None:
    """Killed, the starter can tell nobody; the kernel does. Also before the program runs."""
    source = (
        "from serving.triton.child_process import start_process\n"
        "print(start_process(['/bin/sleep', '600'], env=None, log_path=None).pid, flush=True)\n"
        "input()\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    program = psutil.Process(int(starter.stdout.readline()))
    while runs and program.name() != "sleep":
        time.sleep(0.01)
    starter.kill()
    starter.communicate()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(program.pid) and program.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            program.kill()
            pytest.fail("it outlived its starter")
        time.sleep(0.05)

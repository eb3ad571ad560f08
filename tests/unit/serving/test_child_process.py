"""Servers are started while calls are under way, and end with whoever started them."""

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from serving.child_process import start_process
from serving.launch import MAX_OPEN_FILES
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


def test_it_has_a_limit_of_open_files(tmp_path: Path) -> None:
    """Of its own, whatever ours is."""
    log = tmp_path / "log"
    assert start_process(["/bin/sh", "-c", "ulimit -n"], env=None, log_path=log).wait(20) == 0
    assert int(log.read_text()) <= MAX_OPEN_FILES


def test_it_ends_with_its_starter() -> None:
    """Killed, the starter can tell nobody; the kernel does."""
    source = (
        "from serving.child_process import start_process\n"
        "print(start_process(['/bin/sleep', '600'], env=None, log_path=None).pid, flush=True)\n"
        "input()\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    program = psutil.Process(int(starter.stdout.readline()))
    starter.kill()
    starter.communicate()
    try:
        program.wait(10)
    except psutil.TimeoutExpired:
        program.kill()
        pytest.fail("it outlived its starter")

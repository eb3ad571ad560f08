"""A load gives way, and what it started does not stay behind."""

import os
import subprocess
import sys
import threading

import pytest

from serving import background
from serving.background import NICENESS, can_return, in_the_background


def niceness(thread: threading.Thread) -> int:
    """Of one thread."""
    assert thread.native_id is not None
    return os.getpriority(os.PRIO_PROCESS, thread.native_id)


def test_the_load_and_its_threads_give_way_and_return() -> None:
    """A thread that the load starts inherits its niceness, and has to be taken back too."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if not can_return():
        pytest.skip("needs RLIMIT_NICE or CAP_SYS_NICE, as root has")
    stop = threading.Event()
    before, within = (threading.Thread(target=stop.wait) for _ in range(2))
    before.start()
    try:
        with pytest.raises(RuntimeError), in_the_background():
            within.start()
            assert niceness(threading.current_thread()) == niceness(within) == NICENESS
            assert niceness(before) == usual
            raise RuntimeError
        assert niceness(threading.current_thread()) == niceness(within) == usual
    finally:
        stop.set()
        before.join()
        within.join()


def test_without_a_way_back_nothing_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers with a low priority would be worse than one that loads with the usual."""
    monkeypatch.setattr(background, "can_return", lambda: False)
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with in_the_background():
        assert os.getpriority(os.PRIO_PROCESS, 0) == usual


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give its capabilities away")
def test_the_way_back_is_tried() -> None:
    """Root has it; a process without capabilities and limit has not."""
    source = (
        "import os, resource; from serving.background import can_return\n"
        "root = can_return(); resource.setrlimit(resource.RLIMIT_NICE, (0, 0)); os.setuid(65534)\n"
        "print(root, can_return())"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]

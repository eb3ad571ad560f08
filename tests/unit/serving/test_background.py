"""A load gives way, and what it started does not stay behind."""

import os
import subprocess
import sys
import threading

import pytest

from serving import background
from serving.background import LOWEST, in_the_background, may_raise_to


def niceness() -> set[int]:
    """Of all threads of this process."""
    threads = map(int, os.listdir("/proc/self/task"))
    return {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}


def test_every_thread_gives_way_and_returns() -> None:
    """A thread that the load starts inherits its niceness, and has to be taken back too."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if not may_raise_to(usual):
        pytest.skip("needs RLIMIT_NICE or CAP_SYS_NICE, as root has")
    stop = threading.Event()
    started = threading.Thread(target=stop.wait)
    with pytest.raises(RuntimeError), in_the_background():
        started.start()
        assert niceness() == {LOWEST}
        raise RuntimeError
    assert started.is_alive()
    assert niceness() == {usual}
    stop.set()
    started.join()


def test_without_a_way_back_nothing_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers at the lowest priority would be worse than one that loads at the usual."""
    monkeypatch.setattr(background, "may_raise_to", lambda _: False)
    before = niceness()
    with in_the_background():
        assert niceness() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give its capabilities away")
def test_the_way_back_is_what_the_kernel_says() -> None:
    """A process without capabilities may not raise its priority, and knows it."""
    source = (
        "import os; from serving.background import may_raise_to\n"
        "os.setuid(65534); may, lowest = may_raise_to(0), os.nice(5)\n"
        "try: os.setpriority(os.PRIO_PROCESS, 0, 0); did = True\n"
        "except PermissionError: did = False\n"
        "print(may, did)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    may, did = done.stdout.split()
    assert may == did

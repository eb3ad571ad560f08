"""A load gives way, and what it started does not stay behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fruitstand import __main__
from fruitstand.machine import background
from fruitstand.machine.background import IDLE, REST_S, USUAL, can_return, in_the_background, with_rests


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    """Two that wait until the test ends; not started yet."""
    stop = threading.Event()
    made = [threading.Thread(target=stop.wait) for _ in range(2)]
    yield made
    stop.set()
    for thread in made:
        if thread.ident is not None:
            thread.join()


def policy(thread: threading.Thread) -> int:
    """How one thread is scheduled."""
    assert thread.native_id is not None
    return os.sched_getscheduler(thread.native_id)


def needs_a_way_back() -> None:
    """Skip where there is none."""
    if not can_return():
        pytest.skip("needs RLIMIT_NICE or CAP_SYS_NICE, as root has")


def test_work_rests_again_and_again_and_not_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What raises ends the rests too."""
    rests = []
    monkeypatch.setattr(background.time, "sleep", rests.append)
    worked = time.process_time() + 0.2
    with pytest.raises(RuntimeError), with_rests():
        while time.process_time() < worked:
            pass
        raise RuntimeError
    assert rests.count(REST_S) >= 5
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
    assert signal.getsignal(signal.SIGPROF) == signal.SIG_DFL


@pytest.mark.parametrize(("verb", "rests"), [("promote", True), ("rollback", False)])
def test_a_promotion_rests_and_a_rollback_does_not(
    verb: str, rests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command's first import on: nobody waits for a promotion."""
    seen = []
    monkeypatch.setattr(sys, "argv", ["fruitstand", "models", verb, "1"])
    monkeypatch.setattr(os, "nice", lambda _: 0)
    monkeypatch.setattr("fruitstand.cli.main", lambda: seen.append(signal.getitimer(signal.ITIMER_PROF)[1]))
    __main__.main()
    assert [one > 0 for one in seen] == [rests]


def test_the_load_and_its_threads_give_way_and_return(threads: list[threading.Thread]) -> None:
    """A thread that the load starts inherits how it is scheduled, and has to be taken back too."""
    needs_a_way_back()
    before, within = threads
    before.start()
    with pytest.raises(RuntimeError), in_the_background():
        within.start()
        assert policy(threading.current_thread()) == policy(within) == IDLE
        assert policy(before) == USUAL
        raise RuntimeError
    assert policy(threading.current_thread()) == policy(within) == USUAL


def test_a_load_without_idle_time_goes_on_as_usual(
    threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, with all its threads."""
    needs_a_way_back()
    monkeypatch.setattr(background, "PATIENCE_S", 0.1)
    with in_the_background():
        threads[0].start()
        deadline = time.monotonic() + 20
        while IDLE in (policy(threading.current_thread()), policy(threads[0])):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_without_a_way_back_nothing_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers in idle time would be worse than one that loads as usual."""
    monkeypatch.setattr(background, "can_return", lambda: False)
    with in_the_background():
        assert policy(threading.current_thread()) == USUAL


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give its capabilities away")
def test_the_way_back_is_tried() -> None:
    """Root has it; a process without capabilities and limit has not."""
    source = (
        "import os, resource; from fruitstand.machine.background import can_return\n"
        "root = can_return(); resource.setrlimit(resource.RLIMIT_NICE, (0, 0)); os.setuid(65534)\n"
        "print(root, can_return())"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_another_process_of_the_instance_is_seen(tmp_path: Path) -> None:
    """Of the same server, which is the program's path; not of another, and not of another model."""
    programs = [tmp_path / name / "python" for name in ("one", "two")]
    for program in programs:
        program.parent.mkdir()
        program.symlink_to(sys.executable)
    source = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fruitstand.machine.background import is_beside_another\n"
        "print(is_beside_another(sys.argv[2]), flush=True); sys.stdin.read()"
    )

    def start(program: Path, instance: str) -> "subprocess.Popen[str]":
        command = [str(program), "-c", source, str(Path.cwd()), instance]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    running, answers = [], []
    for program, instance in zip(
        [programs[0], programs[1], programs[0], programs[0]], ["a", "a", "b", "a"], strict=True
    ):
        running.append(start(program, instance))
        assert running[-1].stdout is not None
        answers.append(running[-1].stdout.readline().strip())
    for process in running:
        process.communicate("")
    assert answers == ["False", "False", "False", "True"]


def test_what_was_started_with_a_niceness_returns() -> None:
    """As serving/stub.sh starts it: in all its threads."""
    needs_a_way_back()
    source = (
        "import os, threading; from fruitstand.machine.background import in_the_background\n"
        "stop = threading.Event(); other = threading.Thread(target=stop.wait); other.start()\n"
        "def seen(): return [os.getpriority(os.PRIO_PROCESS, t) for t in (0, other.native_id)]\n"
        "before = seen()\n"
        "with in_the_background(): pass\n"
        "print(before, seen()); stop.set()"
    )
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    done = subprocess.run(
        ["nice", "-n", "3", sys.executable, "-c", source],
        env={**os.environ, "FRUITSTAND_NICENESS": str(usual)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"{[usual + 3] * 2} {[usual] * 2}"


def test_what_ends_gives_way_for_good() -> None:
    """Everybody may, also without a way back."""
    source = (
        "import os, threading; from fruitstand.machine.background import for_good\n"
        "stop = threading.Event(); other = threading.Thread(target=stop.wait); other.start(); for_good()\n"
        "print([os.sched_getscheduler(t) for t in (0, other.native_id)]); stop.set()"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([IDLE, IDLE])

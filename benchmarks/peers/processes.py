"""Find all processes of a peer, even detached ones, by an environment variable that they inherit."""

import os
import signal
import time
from pathlib import Path

import psutil

MARK = "FRUITSTAND_PEER_RUN"
STOP_S = 20.0
BUSY_S, BUSY_PERCENT = 1.0, 20.0


def marked(mark: str) -> list[psutil.Process]:
    """The running processes with this mark."""
    found, entry = [], f"{MARK}={mark}".encode()
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has exited, or belongs to another user
        if entry in environment and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def memory_mib(mark: str) -> float:
    """Memory of all marked processes, with shared pages counted once (PSS)."""
    total = 0
    for process in marked(mark):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return round(total / 2**20, 1)


def stop(mark: str, patience_s: float = STOP_S) -> int:
    """Terminate all marked processes, then kill the rest; returns how many had to be killed."""
    for process in marked(mark):
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        _signal(process, signal.SIGKILL)
    return len(left)


def busy_others() -> list[str]:
    """Names of other processes that use the CPU now and would distort a measurement."""
    processes = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    for process in processes:
        _cpu_percent(process)
    time.sleep(BUSY_S)
    return sorted(process.name() for process in processes if _cpu_percent(process) > BUSY_PERCENT)


def _cpu_percent(process: psutil.Process) -> float:
    try:
        return float(process.cpu_percent())
    except psutil.Error:
        return 0.0


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return

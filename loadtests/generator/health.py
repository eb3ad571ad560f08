"""Is it the load generator that is slow, and not the server? It watches itself."""

import time
from collections.abc import Sequence

import gevent

from loadtests.generator.recording import Recording

PERIOD_S = 0.5
PROBE_S = 0.02
MAX_CPU_SHARE = 0.9
"""A process of Python uses one core at most; from here on it is the limit."""
MAX_LAG_MS = 50.0
"""What a request may wait in the generator's own loop, in most periods."""


def watch(recording: Recording) -> None:
    """Note CPU share and loop lag for ever; run it as a greenlet in each process that sends requests."""
    while True:
        started, used = time.perf_counter(), time.process_time()
        longest_s = 0.0
        while (asked := time.perf_counter()) - started < PERIOD_S:
            gevent.sleep(PROBE_S)
            longest_s = max(longest_s, time.perf_counter() - asked - PROBE_S)
        share = (time.process_time() - used) / (time.perf_counter() - started)
        recording.health.append((time.time(), round(share, 3), round(longest_s * 1e3, 1)))


def limits_found(health: Sequence[tuple[float, float, float]], start: float, end: float) -> list[str]:
    """Why the generator limited what was measured in a stretch of time; empty when it did not.

    Args:
        health: of `Recording`.
        start: wall clock, seconds.
        end: wall clock, seconds.
    """
    here = [(share, lag_ms) for moment, share, lag_ms in health if start <= moment <= end]
    if not here:
        return []
    reasons = []
    share = sorted(share for share, _ in here)[len(here) // 2]
    lag_ms = sorted(lag for _, lag in here)[len(here) // 2]
    if share > MAX_CPU_SHARE:
        reasons.append(f"a generator process used {share:.0%} of a core; add workers, on cores of their own")
    if lag_ms > MAX_LAG_MS:
        reasons.append(f"the generator's loop was {lag_ms:.0f} ms late; it needs a core of its own")
    return reasons

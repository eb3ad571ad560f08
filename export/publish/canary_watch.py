"""Compare a new version on one server with the old one on the others: failed calls and latency.

Both are asked at the same time and by the same callers, so the load of the moment is in both numbers.
"""

import time
from collections.abc import Sequence

from export.publish.live_server import LiveServer
from fruitstand.errors import GateFailed, ServerError
from fruitstand.network.connections import fetch_page, metric_total
from fruitstand.network.statistics import ModelCounters

LOOK_S = 1.0
MIN_CALLS = 50
"""Fewest calls of the new version for a verdict; with fewer at the end, the promotion fails."""
MAX_MORE_FAILED = 0.01
"""Largest excess of failed calls over the old version, as a share."""
MAX_SLOWER = 1.25
"""Largest mean latency, relative to the old version's."""


def watch(number: int, canary: LiveServer, others: Sequence[LiveServer], seconds: float) -> None:
    """Compare one server with the others while both receive calls.

    It takes `seconds`; a clearly worse version fails earlier.

    Raises:
        GateFailed: the new version is worse, or got too few calls.
        ServerError: the metrics cannot be read.
    """
    began = time.monotonic()
    before = _sum([canary]), _sum(others)
    while True:
        time.sleep(LOOK_S)
        new, old = _sum([canary]) - before[0], _sum(others) - before[1]
        if _calls(new) >= MIN_CALLS and (reason := worse(new, old)):
            raise GateFailed(f"version {number} {reason}; the old one is served again")
        if time.monotonic() - began >= seconds:
            break
    if _calls(new) < MIN_CALLS:
        raise GateFailed(
            f"version {number} got {_calls(new)} calls in {seconds:.0f} s, too few"
            f" for a verdict ({MIN_CALLS}): watch longer, or promote without; the old one is served again"
        )


def worse(new: ModelCounters, old: ModelCounters) -> str:
    """What is worse about the new version; empty if nothing is."""
    failed, failed_before = (one.num_failed / max(1, _calls(one)) for one in (new, old))
    if failed > failed_before + MAX_MORE_FAILED:
        return f"fails {failed:.1%} of its calls, the old version {failed_before:.1%}"
    took_ms, took_before_ms = (one.request_ns / max(1, one.num_requests) / 1e6 for one in (new, old))
    if old.num_requests >= MIN_CALLS and took_ms > MAX_SLOWER * took_before_ms:
        return f"takes {took_ms:.1f} ms per answer, the old version {took_before_ms:.1f} ms"
    return ""


def _calls(counters: ModelCounters) -> int:
    return counters.num_requests + counters.num_failed


def _sum(servers: Sequence[LiveServer]) -> ModelCounters:
    return sum(map(_counters, servers), ModelCounters())


def _counters(server: LiveServer) -> ModelCounters:
    """From the metrics page, which counts refused calls too."""
    url, model = server.metrics_url, server.names.classifier
    names = [f"nv_inference_request_{kind}" for kind in ("success", "failure", "duration_us")]
    try:
        page = str(fetch_page(url, timeout_s=5), "utf-8")
        answered, failed, busy_us = (int(metric_total(page, name, model=model)) for name in names)
    except (OSError, ValueError) as exc:
        raise ServerError(f"{url}: the metrics cannot be read: {exc}") from exc
    return ModelCounters(num_requests=answered, num_failed=failed, request_ns=busy_us * 1000)

"""Compare a new version on one server with the old one on the others: failed calls and latency.

Both are asked at the same time and by the same callers, so the load of the moment is in both numbers.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from export.publish.live_server import LiveServer
from fruitstand.errors import GateFailed, ServerError
from fruitstand.network.connections import fetch_page, metric_total

LOOK_S = 1.0
MIN_CALLS = 50
"""Fewest calls of the new version for a verdict; with fewer at the end, the promotion fails."""
MAX_MORE_FAILED = 0.01
"""Largest excess of failed calls over the old version, as a share."""
MAX_SLOWER = 1.25
"""Largest mean latency, relative to the old version's."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Sums of the servers' counters."""

    answered: float = 0.0
    failed: float = 0.0
    busy_us: float = 0.0
    """Total time of all answered calls."""

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.answered + other.answered, self.failed + other.failed, self.busy_us + other.busy_us)

    def __sub__(self, other: "Seen") -> "Seen":
        return Seen(self.answered - other.answered, self.failed - other.failed, self.busy_us - other.busy_us)

    @property
    def failed_share(self) -> float:
        """Failed calls as a share of all calls."""
        return self.failed / max(1.0, self.answered + self.failed)

    @property
    def mean_ms(self) -> float:
        """Mean time of an answered call."""
        return self.busy_us / max(1.0, self.answered) / 1e3


def watch(number: int, canary: LiveServer, others: Sequence[LiveServer], seconds: float) -> None:
    """Compare one server with the others while both receive calls.

    It takes `seconds`; a clearly worse version fails earlier.

    Raises:
        GateFailed: the new version is worse, or got too few calls.
        ServerError: the metrics cannot be read.
    """
    began = time.monotonic()
    before = _seen([canary]), _seen(others)
    while True:
        time.sleep(LOOK_S)
        new, old = _seen([canary]) - before[0], _seen(others) - before[1]
        if new.answered + new.failed >= MIN_CALLS and (reason := worse(new, old)):
            raise GateFailed(f"version {number} {reason}; the old one is served again")
        if time.monotonic() - began >= seconds:
            break
    if new.answered + new.failed < MIN_CALLS:
        raise GateFailed(
            f"version {number} got {new.answered + new.failed:.0f} calls in {seconds:.0f} s, too few"
            f" for a verdict ({MIN_CALLS}): watch longer, or promote without; the old one is served again"
        )


def worse(new: Seen, old: Seen) -> str:
    """What is worse about the new version; empty if nothing is."""
    if new.failed_share > old.failed_share + MAX_MORE_FAILED:
        return f"fails {new.failed_share:.1%} of its calls, the old version {old.failed_share:.1%}"
    if old.answered >= MIN_CALLS and new.mean_ms > MAX_SLOWER * old.mean_ms:
        return f"takes {new.mean_ms:.1f} ms per answer, the old version {old.mean_ms:.1f} ms"
    return ""


def _seen(servers: Sequence[LiveServer]) -> Seen:
    return sum(map(_page, servers), Seen())


def _page(server: LiveServer) -> Seen:
    url, model = server.metrics_url, server.names.classifier
    names = [f"nv_inference_request_{kind}" for kind in ("success", "failure", "duration_us")]
    try:
        page = str(fetch_page(url, timeout_s=5), "utf-8")
        totals = [metric_total(page, name, model=model) for name in names]
    except (OSError, ValueError) as exc:
        raise ServerError(f"{url}: the metrics cannot be read: {exc}") from exc
    return Seen(*totals)

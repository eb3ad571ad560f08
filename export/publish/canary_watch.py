"""A new version on one of several servers: does it fail more often, or answer more slowly, than the old one?

Both are asked at the same time and by the same callers, so the load of the moment is in both numbers.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.errors import GateFailed, ServerError
from fruitstand.network.connections import fetch_page, metric_total

LOOK_S = 1.0
MIN_CALLS = 50
"""Of the new version, before it is judged; at the end of the time they are asked for, too."""
MAX_MORE_FAILED = 0.01
"""Share of calls, more than beside it."""
MAX_SLOWER = 1.25
"""Times the mean latency beside it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What servers counted."""

    answered: float = 0.0
    failed: float = 0.0
    busy_us: float = 0.0
    """Of all answered calls together."""

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.answered + other.answered, self.failed + other.failed, self.busy_us + other.busy_us)

    def __sub__(self, other: "Seen") -> "Seen":
        return Seen(self.answered - other.answered, self.failed - other.failed, self.busy_us - other.busy_us)

    @property
    def failed_share(self) -> float:
        """Of all calls."""
        return self.failed / max(1.0, self.answered + self.failed)

    @property
    def mean_ms(self) -> float:
        """Of an answered call."""
        return self.busy_us / max(1.0, self.answered) / 1e3


def watch(number: int, canary: str, others: Sequence[str], seconds: float) -> None:
    """Compare one server with the others while callers use both.

    Args:
        number: of the version on the one, for the message.
        canary: URL of its metrics.
        others: URLs of the metrics of servers with the old version.
        seconds: how long; what is clearly worse is told earlier.

    Raises:
        GateFailed: the new version is worse, or nobody asked it.
        ServerError: a page of metrics cannot be read.
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
            f"version {number} was asked {new.answered + new.failed:.0f} times in {seconds:.0f} s, too seldom"
            f" to judge it ({MIN_CALLS}): watch longer, or promote without; the old one is served again"
        )


def worse(new: Seen, old: Seen) -> str:
    """What is worse about the new version; empty when nothing is."""
    if new.failed_share > old.failed_share + MAX_MORE_FAILED:
        return f"fails {new.failed_share:.1%} of its calls, the version beside it {old.failed_share:.1%}"
    if old.answered >= MIN_CALLS and new.mean_ms > MAX_SLOWER * old.mean_ms:
        return f"takes {new.mean_ms:.1f} ms for an answer, the version beside it {old.mean_ms:.1f} ms"
    return ""


def _seen(urls: Sequence[str]) -> Seen:
    return sum((_page(url) for url in urls), Seen())


def _page(url: str) -> Seen:
    names = [f"nv_inference_request_{kind}" for kind in ("success", "failure", "duration_us")]
    try:
        page = str(fetch_page(url, timeout_s=5), "utf-8")
        totals = [metric_total(page, name, model=FRUIT_CLASSIFIER) for name in names]
    except (OSError, ValueError) as exc:
        raise ServerError(f"{url}: the metrics cannot be read: {exc}") from exc
    return Seen(*totals)

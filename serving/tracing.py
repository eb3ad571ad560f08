"""OpenTelemetry settings: the gateway and Triton add their spans to the caller's trace.

FRUITSTAND_TRACES=http://HOST:4318/v1/traces turns tracing on. A caller's `traceparent` decides whether its
request is traced; of requests without one, the share FRUITSTAND_TRACES_SHARE is traced, 1 % by default.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from fruitstand.errors import UsageError

DEFAULT_SHARE = "0.01"


@dataclass(frozen=True, slots=True)
class Tracing:
    """A collector and a sampling rate."""

    url: str
    """URL of the collector, OTLP over HTTP."""
    share: float
    """Share of the requests without a `traceparent` to trace, 0 to 1."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the collector."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80


def read_tracing(url: str | None, share: str | None) -> Tracing | None:
    """Parse the environment variables; None turns tracing off.

    Raises:
        UsageError: not an http URL, or not a number from 0 to 1.
    """
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(
            f"FRUITSTAND_TRACES: got {url!r}, allowed http://HOST:PORT/v1/traces; for TLS, run a"
            " collector on this machine that forwards the traces"
        )
    try:
        number = float(share or DEFAULT_SHARE)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise UsageError(f"FRUITSTAND_TRACES_SHARE: got {share!r}, allowed a number from 0 to 1")
    return Tracing(url, number)

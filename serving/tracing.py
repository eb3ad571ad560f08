"""Where OpenTelemetry traces go: spans of the gateway and of Triton, in the trace that a caller began.

FRUITSTAND_TRACES=http://HOST:4318/v1/traces turns it on. A caller's `traceparent` says whether its request is
traced; of requests without one FRUITSTAND_TRACES_SHARE are, 1 % by default.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from fruitstand.errors import UsageError

DEFAULT_SHARE = "0.01"


@dataclass(frozen=True, slots=True)
class Tracing:
    """A collector, and how much it gets."""

    url: str
    """Of OTLP over HTTP."""
    share: float
    """Of the requests without a `traceparent`, 0 to 1."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80


def read_tracing(url: str | None, share: str | None) -> Tracing | None:
    """What the environment says; None where nobody wants traces.

    Raises:
        UsageError: no URL of http, or no share.
    """
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(
            f"FRUITSTAND_TRACES: got {url!r}, allowed http://HOST:PORT/v1/traces; a collector beside the"
            " server may go on with TLS"
        )
    try:
        number = float(share or DEFAULT_SHARE)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise UsageError(f"FRUITSTAND_TRACES_SHARE: got {share!r}, allowed a number from 0 to 1")
    return Tracing(url, number)

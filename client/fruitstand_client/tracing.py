"""Requests belong to the caller's trace, where the caller uses OpenTelemetry."""

import sys


def trace_headers() -> list[tuple[str, str]]:
    """W3C's `traceparent` of the caller's current span, and what else its propagator sends.

    Empty where the calling program does not use OpenTelemetry: one that does has imported it, so nothing is
    imported for the others.
    """
    if "opentelemetry.trace" not in sys.modules:
        return []
    from opentelemetry.propagate import inject

    headers: dict[str, str] = {}
    inject(headers)
    return [(name.lower(), value) for name, value in headers.items()]  # gRPC takes no other letters

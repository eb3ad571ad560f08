"""Whether and when a request that failed is sent again."""

import random
import threading

from fruitstand_client.errors import ModelNotFound, RequestFailed, ServerUnreachable, ServerUntrusted

RETRIED = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
"""The statuses that say: not now."""
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
MAX_TOKENS = 100.0
TOKENS_PER_SUCCESS = 0.1


class RetryPolicy:
    """Backoff with jitter and a budget that all requests of one client share; safe in several threads.

    Every refusal takes a token, every answer brings a tenth of one, and below half of the tokens nothing is
    repeated: a server that refuses most requests is not asked several times for each. A connection that was
    not there costs the server nothing, so it takes no token; and before the first answer of all it is a wrong
    address, not a restart, and is told at once.

    Source:
        gRPC proposal A6, client retries: token bucket, push-back.
    """

    def __init__(self) -> None:
        """Start with all tokens."""
        self._tokens = MAX_TOKENS
        self._lock = threading.Lock()
        self._answered = False

    def answered(self) -> None:
        """Count an answer."""
        self._answered = True
        if self._tokens < MAX_TOKENS:
            with self._lock:
                self._tokens = min(MAX_TOKENS, self._tokens + TOKENS_PER_SUCCESS)

    def pause_s(self, failure: RequestFailed, attempt: int) -> float | None:
        """How long to wait before the next attempt, seconds; None: there is none.

        Args:
            failure: of the last attempt.
            attempt: its number, from 0.
        """
        absent = isinstance(failure, ServerUnreachable | ModelNotFound)
        # A Triton that is stopping has let its models go: it says NOT_FOUND of one it just answered with.
        if not (failure.status in RETRIED or absent) or isinstance(failure, ServerUntrusted):
            return None
        if absent and not self._answered:
            return None
        if not absent:
            with self._lock:
                self._tokens = max(0.0, self._tokens - 1)
                if self._tokens <= MAX_TOKENS / 2:
                    return None
        if failure.pushback_s is not None:
            return failure.pushback_s if failure.pushback_s >= 0 else None
        return backoff_s(attempt)


def backoff_s(attempt: int) -> float:
    """A pause that doubles with each attempt, from 0, and differs from every other caller's, seconds."""
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.5)

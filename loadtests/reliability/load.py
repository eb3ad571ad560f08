"""Open-loop load with a ledger: calls are sent when they are due, whatever became of the earlier ones."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

from fruitstand_client import Client, RequestFailed

THREADS = 64


@dataclass
class Ledger:
    """What the client knows of its calls."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    """Of calls that were answered, from the moment they were due."""
    last_s: float = 0.0
    """When the last call ended, on the monotonic clock."""

    @property
    def failed(self) -> int:
        """Calls that were not answered well."""
        return sum(self.statuses.values()) - self.statuses["OK"]

    def quantile_ms(self, share: float) -> float | None:
        """Of the latencies; None without one."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    def numbers(self) -> dict[str, object]:
        """For the result."""
        return {
            "calls": sum(self.statuses.values()),
            "failed": self.failed,
            "statuses": dict(self.statuses),
            "p50_ms": self.quantile_ms(0.5),
            "p99_ms": self.quantile_ms(0.99),
        }


class Load:
    """Calls at a fixed rate while the block runs; the shipped client, its own retries included."""

    def __init__(self, url: str, images: Sequence[bytes], *, rate: float, deadline_s: float = 10.0) -> None:
        """Take turns with `images`, `rate` calls/s, each with a deadline."""
        self.ledger = Ledger()
        self._images, self._rate = images, rate
        self._client = Client(url, deadline_s=deadline_s)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(THREADS)
        self._sender = threading.Thread(target=self._send)

    def __enter__(self) -> "Load":
        self._sender.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._sender.join()
        self._pool.shutdown()
        self._client.close()

    def _send(self) -> None:
        started, number = time.monotonic(), 0
        while not self._stopped.is_set():
            due = started + number / self._rate
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            self._pool.submit(self._call, self._images[number % len(self._images)], due)
            number += 1

    def _call(self, image: bytes, due: float) -> None:
        try:
            (answer,) = self._client.classify([image])
            status = "OK" if answer.failure is None else answer.failure.status or "UNKNOWN"
        except RequestFailed as exc:
            status = exc.status or "UNKNOWN"
        now = time.monotonic()
        with self._lock:
            self.ledger.statuses[status] += 1
            self.ledger.last_s = now
            if status == "OK":
                self.ledger.latencies_ms.append((now - due) * 1e3)

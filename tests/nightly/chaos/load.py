"""Open-loop load with a ledger: calls are sent when they are due, whatever became of the earlier ones."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any

from fruitstand.errors import ServerError
from fruitstand_client import AsyncClient, RequestFailed
from fruitstand_client.exchange import Call
from fruitstand_client.prediction import Prediction
from tests.nightly.chaos.stack import Stack

REFUSED_HERE = "REFUSED_HERE"
"""By the client itself."""
UNANSWERED = ("DEADLINE_EXCEEDED", "CANCELLED", "UNAVAILABLE", "UNKNOWN")
"""The server may have answered all the same: too late, or over a connection that broke."""


@dataclass(frozen=True, slots=True)
class Record:
    """Of one call; times are seconds on the monotonic clock."""

    due: float
    sent: float
    done: float
    status: str
    version: str = ""

    @property
    def latency_ms(self) -> float:
        """From the moment it was due."""
        return (self.done - self.due) * 1e3


@dataclass
class Ledger:
    """What the client knows of its calls."""

    records: list[Record] = field(default_factory=list)
    attempts: int = 0
    """Calls with their repetitions."""
    wrong: list[str] = field(default_factory=list)
    """Answers that are not what they should be."""

    @property
    def statuses(self) -> Counter[str]:
        """How many ended how."""
        return Counter(one.status for one in self.records)

    @property
    def failed(self) -> int:
        """Calls that were not answered well."""
        return len(self.records) - self.statuses["OK"]

    def quantile_ms(
        self, share: float, *, after: float = 0.0, before: float = float("inf"), answered: bool = True
    ) -> float | None:
        """Of the latencies of calls that were due in a span of time; None without one."""
        ordered = sorted(
            one.latency_ms
            for one in self.records
            if after <= one.due < before and (one.status == "OK") is answered
        )
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else None

    def goodput(self, after: float, before: float) -> float:
        """Calls a second that were answered well in a span of time."""
        good = sum(one.status == "OK" and after <= one.done < before for one in self.records)
        return good / (before - after)

    def numbers(self) -> dict[str, Any]:
        """For the result."""
        late = max((one.sent - one.due for one in self.records), default=0.0)
        return {
            "calls": len(self.records),
            "failed": self.failed,
            "statuses": dict(self.statuses),
            "attempts": self.attempts,
            "p50_ms": self.quantile_ms(0.5),
            "p99_ms": self.quantile_ms(0.99),
            "sent_late_at_most_ms": round(late * 1e3, 1),
        }


class Caller(AsyncClient):
    """The shipped client, its attempts counted."""

    attempts = 0

    async def once(self, images: Sequence[bytes]) -> list[Prediction]:
        """One attempt, without repetition."""
        return await self._ask(Call(images, 5, self._deadline_s))

    async def _ask(self, call: Call) -> list[Prediction]:
        self.attempts += 1
        return await super()._ask(call)


class Load:
    """Calls while the block runs."""

    def __init__(
        self,
        stack: Stack,
        requests: Sequence[Sequence[bytes]],
        *,
        rate: float,
        in_flight: int | None = None,
        deadline_s: float = 10.0,
        repeat: bool = True,
        url: str | None = None,
        api_key: str | None = None,
        check: Callable[[int, Sequence[Prediction]], str | None] | None = None,
        **client: Any,
    ) -> None:
        """Take turns with `requests`.

        Args:
            stack: whom to call, and who counts what came of it.
            requests: of one or several images each.
            rate: calls/s; may be changed while it runs. 0: as fast as `in_flight` allows.
            in_flight: at most so many calls at once; None: however many are not answered yet.
            deadline_s: of each call.
            repeat: with the shipped client's own retries.
            url: instead of the stack's gateway.
            api_key: instead of the stack's.
            check: what is wrong with the answer to one of `requests`, by its position; None: nothing.
            client: further settings of the client.
        """
        self.ledger, self.rate = Ledger(), rate
        self._stack, self._requests, self._check = stack, requests, check
        self._in_flight, self._repeat = in_flight, repeat
        self._arguments: dict[str, Any] = {
            "url": url or stack.url,
            "deadline_s": deadline_s,
            "tls": stack.tls,
            "api_key": api_key or stack.api_key,
            **client,
        }
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()
        if kind is None and self._failure is not None:
            raise self._failure
        if kind is None and not self.ledger.records:
            raise ServerError(f"no call to {self._arguments['url']} was sent")
        self._stack.answered += self.ledger.statuses["OK"]
        self._stack.given_up += sum(self.ledger.statuses[one] for one in UNANSWERED)
        self._stack.given_up += self.ledger.attempts - len(self.ledger.records)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            self._failure = exc

    async def _main(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        room = asyncio.Semaphore(self._in_flight or 1_000_000)
        async with Caller(**self._arguments) as client:
            due = time.monotonic()
            for number in count():
                if self.rate:
                    due += 1 / self.rate
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                await room.acquire()
                if self._stopped.is_set():
                    break
                task = asyncio.create_task(
                    self._call(client, number % len(self._requests), due if self.rate else time.monotonic())
                )
                tasks.add(task)
                task.add_done_callback(lambda done: (tasks.discard(done), room.release()))
            await asyncio.gather(*tasks)
            self.ledger.attempts = client.attempts

    async def _call(self, client: Caller, position: int, due: float) -> None:
        images, sent, version = self._requests[position], time.monotonic(), ""
        try:
            answers = await (client.classify(images) if self._repeat else client.once(images))
            failures = [one.failure.status or REFUSED_HERE for one in answers if one.failure is not None]
            status, version = (failures or ["OK"])[0], answers[0].model_version or ""
            wrong = self._check(position, answers) if self._check and status == "OK" else None
            if wrong:
                self.ledger.wrong.append(wrong)
        except RequestFailed as exc:
            status = exc.status or REFUSED_HERE
        self.ledger.records.append(Record(due, sent, time.monotonic(), status, version))


def capacity(stack: Stack, requests: Sequence[Sequence[bytes]], *, seconds: float, in_flight: int) -> float:
    """Calls/s that are answered when so many are always under way."""
    with Load(stack, requests, rate=0, in_flight=in_flight) as load:
        time.sleep(seconds)
        ended = time.monotonic()
    return load.ledger.goodput(ended - 0.8 * seconds, ended)

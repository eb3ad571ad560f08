"""Calls at a given rate, or so many in flight, and a ledger of what became of every one of them."""

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from benchmarks.faults.http import Connections
from benchmarks.faults.subjects import Subject
from benchmarks.load import RefusedByStatus, Send, Target
from fruitstand.errors import FruitstandError

DEADLINE_S = 5.0
"""A caller's patience, unless a fault names another."""
LEARN_S = 60.0
BACK_OFF_S = 0.05
"""After a failure, in a closed loop."""
SLOW_S = 0.5
"""Service is back to normal once calls are answered right within that."""
RIGHT, WRONG, REFUSED, LOST = "right", "wrong", "refused", "lost"
"""The verdicts: the expected label; another; an HTTP status other than 200; no answer, or not in time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One call; times are seconds of `time.monotonic`."""

    sent: float
    done: float
    verdict: str
    status: str
    """HTTP status, or the name of the error."""
    text: str = ""
    """Of a refusal."""
    version: str = ""
    """Of the model, as an answer says."""

    @property
    def is_normal(self) -> bool:
        """Answered right, and soon."""
        return self.verdict == RIGHT and self.done - self.sent <= SLOW_S


@dataclass(slots=True)
class Ledger:
    """What the callers know."""

    records: list[Record] = field(default_factory=list)
    late_s: float = 0.0
    """How far the generator fell behind its own plan, at most."""

    def count(self, verdict: str) -> int:
        """How many ended so."""
        return sum(one.verdict == verdict for one in self.records)

    def between(self, since: float, until: float = math.inf) -> "Ledger":
        """The calls that were sent in a span of time."""
        return Ledger([one for one in self.records if since <= one.sent < until], self.late_s)

    @property
    def failed(self) -> int:
        """Calls that were not answered right."""
        return len(self.records) - self.count(RIGHT)

    def quantile_ms(self, share: float, verdict: str = RIGHT) -> float | None:
        """Of the times to an answer of that verdict."""
        times = sorted(one.done - one.sent for one in self.records if one.verdict == verdict)
        return round(times[min(len(times) - 1, int(share * len(times)))] * 1e3, 1) if times else None

    def abnormal_s(self, since: float, quiet_s: float = 2.0) -> float | None:
        """Seconds from `since` to the sending of the last call that failed or was slow.

        None where the last `quiet_s` of the load were not normal: it had not come back by then.
        """
        after = [one for one in self.records if one.sent >= since]
        bad = [one.sent for one in after if not one.is_normal]
        if not bad:
            return 0.0
        end = max(one.sent for one in after)
        return round(max(bad) - since, 1) if max(bad) < end - quiet_s else None

    def numbers(self) -> dict[str, Any]:
        """For the result."""
        verdicts = {verdict: self.count(verdict) for verdict in (RIGHT, WRONG, REFUSED, LOST)}
        return {
            "calls": len(self.records),
            **verdicts,
            "statuses": dict(Counter(one.status for one in self.records)),
            "texts": sorted({one.text[:200] for one in self.records if one.text})[:3],
            "p50_ms": self.quantile_ms(0.5),
            "p99_ms": self.quantile_ms(0.99),
            "generator_late_s": round(self.late_s, 2),
        }


class Caller:
    """Sends images to one subject, and knows what it should say."""

    def __init__(self, subject: Subject, url: str, images: Sequence[bytes]) -> None:
        """Make the payloads.

        Args:
            subject: who is asked.
            url: of its HTTP port.
            images: encoded; good ones, unless a fault sends others.
        """
        self.subject = subject
        self.target = Target(url, images, subject.peer)
        self._url, self._requests = url, []
        for body, kind in map(subject.peer.payload, images):
            head = f"POST {subject.peer.path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            self._requests.append(head.encode() + body)
        self.expected: list[str] = []
        """Labels, as it gave them before anything was broken; empty: any label is right."""

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Send]:
        """Connect, and yield a function that sends the image of this number, and raises what it is told."""
        connections = Connections(self._url)

        async def send(number: int) -> bytes:
            status, answer = await connections.send(self._requests[number])
            if status != 200:
                raise RefusedByStatus(self._url, status, answer)
            return answer

        yield send
        connections.close()

    async def call(self, send: Send, number: int, deadline_s: float = DEADLINE_S) -> Record:
        """One call."""
        sent, text, version = time.monotonic(), "", ""
        try:
            async with asyncio.timeout(deadline_s):
                answer = await send(number)
            label, version = self.subject.read(self.target.label(answer), answer)
            verdict = RIGHT if not self.expected or label == self.expected[number] else WRONG
            status = "200"
        except RefusedByStatus as exc:
            verdict, status, text = REFUSED, str(exc.status), exc.answer[:4096].decode(errors="replace")
        except (ValueError, KeyError, TypeError, IndexError, FruitstandError) as exc:
            verdict, status, text = WRONG, "200", f"{type(exc).__name__}: {exc}"
        except (TimeoutError, OSError) as exc:
            verdict, status = LOST, type(exc).__name__
        done = time.monotonic()
        return Record(sent=sent, done=done, verdict=verdict, status=status, text=text, version=version)

    async def at_once(self, numbers: Sequence[int], deadline_s: float = DEADLINE_S) -> list[Record]:
        """Calls that are sent together."""
        async with self.connected() as send:
            return list(await asyncio.gather(*(self.call(send, number, deadline_s) for number in numbers)))

    def learn(self) -> None:
        """Take its present labels as the right ones: each image alone, one after the other.

        Raises:
            FruitstandError: a call failed.
        """

        async def ask() -> list[str]:
            async with self.connected() as send, asyncio.timeout(LEARN_S):
                answers = [await send(number) for number in range(self.target.num_requests)]
            return [self.subject.read(self.target.label(answer), answer)[0] for answer in answers]

        self.expected = asyncio.run(ask())


class Load:
    """Calls in a thread of its own while the block runs; the ledger is whole after it."""

    def __init__(
        self, caller: Caller, *, rate: float = 0.0, in_flight: int = 0, deadline_s: float = DEADLINE_S
    ) -> None:
        """Open or closed loop.

        Args:
            caller: with good images.
            rate: calls/s, sent when they are due whatever became of earlier ones.
            in_flight: instead of a rate, so many calls at any time.
            deadline_s: of each call.
        """
        self.ledger = Ledger()
        self._caller, self._rate, self._in_flight, self._deadline_s = caller, rate, in_flight, deadline_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    async def _run(self) -> None:
        async with self._caller.connected() as send:
            if self._rate:
                await self._open_loop(send)
            else:
                await asyncio.gather(*(self._user(send, number) for number in range(self._in_flight)))

    async def _open_loop(self, send: Send) -> None:
        calls: set[asyncio.Task[str]] = set()
        due, number = time.monotonic(), 0
        while not self._stopped.is_set():
            number, due = number + 1, due + 1 / self._rate
            calls.add(task := asyncio.create_task(self._one(send, number)))
            task.add_done_callback(calls.discard)
            wait_s = due - time.monotonic()
            self.ledger.late_s = max(self.ledger.late_s, -wait_s)
            await asyncio.sleep(max(0.0, wait_s))
        await asyncio.gather(*calls)

    async def _user(self, send: Send, number: int) -> None:
        while not self._stopped.is_set():
            verdict = await self._one(send, number)
            number += self._in_flight
            if verdict != RIGHT:
                await asyncio.sleep(BACK_OFF_S)

    async def _one(self, send: Send, number: int) -> str:
        number %= self._caller.target.num_requests
        record = await self._caller.call(send, number, self._deadline_s)
        self.ledger.records.append(record)
        return record.verdict


def capacity(caller: Caller, seconds: float = 5.0, in_flight: int = 64) -> float:
    """Calls/s that are answered right in a closed loop, after a second of warm-up."""
    with Load(caller, in_flight=in_flight) as load:
        time.sleep(1.0)
        since = time.monotonic()
        time.sleep(seconds)
        until = time.monotonic()
    done = sum(one.verdict == RIGHT and since <= one.done < until for one in load.ledger.records)
    if not done:
        raise FruitstandError(f"{caller.subject.name}: nothing answered right: {load.ledger.numbers()}")
    return done / (until - since)

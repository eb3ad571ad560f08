"""The load generator of the benchmarks: prepared requests in a closed loop, over HTTP or gRPC."""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks.peers.catalogue import Peer
from fruitstand.errors import FruitstandError
from fruitstand.network.connections import open_channel
from fruitstand_client.prediction import Prediction
from fruitstand_client.wire import MODEL_INFER, Wire

Send = Callable[[int], Awaitable[bytes]]
"""Sends the payload of this number and returns the raw answer."""
TIMEOUT_S = 60.0
WARM_UP_S = 2.0
SLOW_MS = 400.0
"""A slower call met a stall: with 64 in flight, calls normally take half of this."""


class RefusedByStatus(FruitstandError):
    """An HTTP answer that is none: another status than 200."""

    def __init__(self, address: str, status: int, answer: bytes) -> None:
        super().__init__(f"{address}: status {status}: {answer[:200]!r}")
        self.status, self.answer = status, answer


class NothingMeasured(FruitstandError):
    """Calls were answered, but none in the measured time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Result of one closed loop."""

    images_per_s: float
    p50_ms: float
    p99_ms: float
    num_slow: int
    """Calls that took longer than `SLOW_MS`."""
    generator_cpu_share: float
    """CPU time of the load generator, as a share of one core."""


class Target:
    """A server to send images to, ours or a peer's."""

    def __init__(
        self,
        url: str,
        images: Sequence[bytes],
        peer: Peer | None = None,
        *,
        request_batch: int = 1,
        top_k: int = 1,
    ) -> None:
        self._url, self._peer, self.num_requests = url, peer, len(images)
        self.request_batch = request_batch
        if peer is not None:
            self._payloads = [peer.payload(image) for image in images]
        else:
            wire = self._wire = Wire(url, tls=None, api_key=None, keepalive_s=None, asynchronous=False)
            endless = [*images, *images[: request_batch - 1]]
            self._messages = []
            for start in range(len(images)):
                request = wire.request(endless[start : start + request_batch], top_k, TIMEOUT_S)
                del request.outputs[1:]  # peers do not say either whether an image is of a known class
                self._messages.append(request.SerializeToString())
            wire.channel.close()

    def label(self, answer: bytes) -> str:
        """The label in a raw answer."""
        if self._peer is not None:
            return self._peer.label(json.loads(answer))
        return str(self.prediction(answer).label)

    def prediction(self, answer: bytes) -> Prediction:
        """The prediction in a raw answer of our server to a single image."""
        return self._wire.predictions(service_pb2.ModelInferResponse.FromString(answer), 1)[0]

    @asynccontextmanager
    async def connected(self) -> Any:
        """Connect, and yield a function that sends a payload."""
        if self._peer is None:
            async with open_channel(self._url, asynchronous=True) as channel:
                infer = channel.unary_unary(MODEL_INFER)  # takes and returns bytes

                async def call(number: int) -> bytes:
                    return await infer(self._messages[number], timeout=TIMEOUT_S)

                yield call
            return
        address = self._url + self._peer.path
        timeout = aiohttp.ClientTimeout(TIMEOUT_S)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

            async def post(number: int) -> bytes:
                body, kind = self._payloads[number]
                async with session.post(address, data=body, headers={"Content-Type": kind}) as response:
                    answer = await response.read()
                    if response.status != 200:
                        raise RefusedByStatus(address, response.status, answer)
                    return answer

            yield post


def is_refusal(error: grpc.aio.AioRpcError) -> bool:
    """Whether our server's queue refused the call, or no server answered."""
    return bool(error.code() == grpc.StatusCode.UNAVAILABLE)


async def ask_all(
    target: Target, numbers: Sequence[int], in_flight: int
) -> tuple[float, list[bytes | grpc.aio.AioRpcError]]:
    """Send payloads by number.

    Returns:
        Seconds for all payloads, and for each its raw answer or gRPC error.
    """
    outcomes: list[Any] = [None] * len(numbers)
    left = iter(enumerate(numbers))
    async with target.connected() as send:

        async def caller() -> None:
            for position, number in left:
                try:
                    outcomes[position] = await send(number)
                except grpc.aio.AioRpcError as exc:
                    outcomes[position] = exc

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return time.perf_counter() - started, outcomes


async def labels(target: Target) -> list[str]:
    """The label of every image, with 8 requests in flight."""
    _, outcomes = await ask_all(target, range(target.num_requests), 8)
    for outcome in outcomes:
        if isinstance(outcome, grpc.aio.AioRpcError):
            raise outcome
    return [target.label(outcome) for outcome in outcomes]


async def closed_loop(target: Target, in_flight: int, seconds: float) -> Measured:
    """Measure images/s and latency of the calls that are answered within `seconds` after the warm-up.

    Raises:
        NothingMeasured: no call was answered in that time.
        FruitstandError: no call was answered at all.
    """
    latencies_ms: list[float] = []
    position = num_answered = 0
    started = time.perf_counter()
    counts_from = started + min(WARM_UP_S, seconds)
    end = counts_from + seconds
    async with target.connected() as send:

        async def user() -> None:
            nonlocal position, num_answered
            while (begun := time.perf_counter()) < end:
                number, position = position % target.num_requests, position + target.request_batch
                try:
                    await send(number)
                except grpc.aio.AioRpcError as exc:
                    if not is_refusal(exc):
                        raise
                    continue
                now = time.perf_counter()
                num_answered += 1
                if counts_from <= now <= end:
                    latencies_ms.append((now - begun) * 1e3)

        used = time.process_time()
        await asyncio.gather(*(user() for _ in range(in_flight)))
        share = (time.process_time() - used) / (time.perf_counter() - started)
    if num_answered == 0:
        raise FruitstandError(f"no call with {in_flight} in flight was answered; is the server there?")
    if not latencies_ms:
        raise NothingMeasured(f"no call with {in_flight} in flight ended within {seconds:g} s")
    p50, p99 = np.percentile(latencies_ms, (50, 99))
    images = len(latencies_ms) * target.request_batch
    return Measured(
        images_per_s=round(images / seconds, 1),
        p50_ms=round(float(p50), 2),
        p99_ms=round(float(p99), 2),
        num_slow=sum(latency > SLOW_MS for latency in latencies_ms),
        generator_cpu_share=round(share, 2),
    )


def ratio(values: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest ratio. Pairs come from the same round, so other load affects both."""
    ratios = [value / reference for value, reference in zip(values, references, strict=True)]
    found = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {key: round(value, 3) for key, value in found.items()}

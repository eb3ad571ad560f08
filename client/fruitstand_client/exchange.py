"""Classify a group of images with retries and splitting; shared by the blocking and the async client.

`Exchange.answer` is a coroutine. Its `Transport` sends requests, reads files and sleeps. The transport of the
blocking client never suspends, so it needs no event loop.
"""

import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fruitstand_client.errors import (
    DeadlineExceeded,
    DecodeFailed,
    ImageRejected,
    ModelNotFound,
    Overloaded,
    RequestFailed,
    ServerUnreachable,
    ServerUntrusted,
)
from fruitstand_client.images import EncodedImage, Image, read_batches
from fruitstand_client.prediction import Prediction

RETRIED = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
"""Statuses worth a retry."""
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
MAX_TOKENS = 100.0
TOKENS_PER_SUCCESS = 0.1


class RetryPolicy:
    """Backoff with jitter and a retry budget shared by all requests of a client; thread-safe.

    Every refusal costs a token, every answer adds a tenth of one, and below half of the tokens no request is
    retried: a server that refuses most requests does not get even more of them. A failed connection costs no
    token, because it is no load on the server. Before the very first answer it is reported at once, because
    then the address is probably wrong.

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
        """Seconds to wait before the next attempt; None forbids another one.

        Attempts are counted from 0.
        """
        absent = isinstance(failure, ServerUnreachable | ModelNotFound)
        # A stopping Triton has unloaded its models: it answers NOT_FOUND for a model that just answered.
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
    """Seconds to wait, doubled with each attempt (counted from 0), with random jitter."""
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.5)


LONE_REPEATS = 3
"""Requests for a single image after a batch that the server could not decode."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    encoded: Sequence[bytes]
    top_k: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Transport:
    """Input and output of a client, blocking or async."""

    call: Callable[[Call], Awaitable[list[Prediction]]]
    """Send one request; raises `RequestFailed`."""
    read: Callable[[Iterator[list[EncodedImage]]], Awaitable[list[EncodedImage] | None]]
    """Take the next batch of images; None at the end."""
    pause: Callable[[float], Awaitable[object]]
    """Wait for this many seconds."""


class Exchange:
    """Reads images, and sends, retries and splits requests; one per client, with its retry budget."""

    def __init__(self, *, deadline_s: float, batch_bytes: int, shrink: bool = False) -> None:
        """Take the client's settings; see `fruitstand_client.client.Client`."""
        self._deadline_s = deadline_s
        self._batch_bytes, self._shrink = batch_bytes, shrink
        self._retry = RetryPolicy()

    async def answer(self, images: Sequence[Image], top_k: int, transport: Transport) -> list[Prediction]:
        """Classify a group of images, in as many requests as their size requires.

        Returns:
            A prediction for each image, in order. One that cannot be read, that the server rejects, or that
            was not answered in time has its `failure` set.

        Raises:
            RequestFailed: the server cannot be reached, does not have the model, or fails.
        """
        predictions: list[Prediction] = []
        batches = read_batches(images, batch_bytes=self._batch_bytes, shrink=self._shrink)
        while (batch := await transport.read(batches)) is not None:
            encoded = [one.content for one in batch if one.failure is None]
            work = _Work(self._retry, transport, top_k, time.monotonic() + self._deadline_s)
            answers = iter(await work.settle(encoded) if encoded else [])
            for one in batch:
                answer = Prediction("", failure=one.failure) if one.failure else next(answers)
                named = replace(answer, path=one.name, converted_from=one.converted_from)
                predictions.append(named)
        return predictions


@dataclass(frozen=True, slots=True)
class _Work:
    """One batch of a group: sent, retried and split until its deadline."""

    retry: RetryPolicy
    transport: Transport
    top_k: int
    deadline: float

    async def settle(self, encoded: Sequence[bytes]) -> list[Prediction]:
        """Send the batch; images that the server could not decode are sent again alone, a few times.

        NVIDIA's dali backend decodes requests of several callers as one batch, and one bad image fails all of
        it. After a random pause, a good image is in a batch with other images.
        """
        answers = await self._isolate(encoded)
        for attempt in range(LONE_REPEATS):
            suspects = [at for at, one in enumerate(answers) if isinstance(one.failure, DecodeFailed)]
            pause_s = backoff_s(attempt)
            if not suspects or time.monotonic() + pause_s >= self.deadline:
                break
            await self.transport.pause(pause_s)
            for at in suspects:
                answers[at : at + 1] = await self._isolate(encoded[at : at + 1])
        return answers

    async def _isolate(self, encoded: Sequence[bytes]) -> list[Prediction]:
        """Send a batch; if one image causes a refusal, halve the batch until that image is alone."""
        try:
            return await self._ask(encoded)
        except (ImageRejected, Overloaded, DeadlineExceeded) as exc:
            if len(encoded) == 1 or not isinstance(exc, ImageRejected):
                return [Prediction("", failure=exc)] * len(encoded)
        half = len(encoded) // 2
        first = await self._isolate(encoded[:half])
        return first + await self._isolate(encoded[half:])

    async def _ask(self, encoded: Sequence[bytes]) -> list[Prediction]:
        """Send one request; retry while the status allows it and time is left."""
        failure: RequestFailed = DeadlineExceeded("no time was left to ask")
        attempt = 0
        while (left_s := self.deadline - time.monotonic()) > 0:
            try:
                answers = await self.transport.call(Call(encoded, self.top_k, left_s))
            except RequestFailed as exc:
                pause_s = self.retry.pause_s(exc, attempt)
                if pause_s is None or time.monotonic() + pause_s >= self.deadline:
                    raise
                failure = exc
            else:
                self.retry.answered()
                return answers
            await self.transport.pause(pause_s)
            attempt += 1
        raise failure

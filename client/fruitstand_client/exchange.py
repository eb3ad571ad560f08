"""What a client does with a group of images, without doing it: one for the blocking and the async client.

`Exchange.answer` is a generator. It yields a step, is sent the step's result or thrown its failure, and
returns the predictions; who drives it decides whether a step blocks a thread or is awaited.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from fruitstand_client.errors import DeadlineExceeded, DecodeFailed, ImageRejected, Overloaded, RequestFailed
from fruitstand_client.images import EncodedImage, Image, read_batches
from fruitstand_client.prediction import Prediction
from fruitstand_client.retry import RetryPolicy, backoff_s

LONE_REPEATS = 3
"""Requests for an image alone, after one that the server could not decode."""


@dataclass(frozen=True, slots=True)
class Read:
    """Take the next batch from `batches`: a list of `EncodedImage`, or None at the end."""

    batches: Iterator[list[EncodedImage]]


@dataclass(frozen=True, slots=True)
class Call:
    """Send one request: a list of `Prediction`, or a `RequestFailed` thrown."""

    encoded: Sequence[bytes]
    top_k: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


Steps: TypeAlias = Generator[Read | Call | Pause, Any, list[Prediction]]


class Exchange:
    """Reads, sends, repeats and splits; one for each client, whose requests share its retry budget."""

    def __init__(self, *, deadline_s: float, batch_bytes: int, shrink: bool = False) -> None:
        """Take the client's settings; see `fruitstand_client.client.Client`."""
        self._deadline_s = deadline_s
        self._batch_bytes, self._shrink = batch_bytes, shrink
        self._retry = RetryPolicy()

    def answer(self, images: Sequence[Image], top_k: int) -> Steps:
        """Classify a group of images, in as many requests as their bytes ask for.

        Returns:
            A prediction for each image, in order. One that cannot be read, that the server rejects, or that
            was not answered in time has its `failure` set.

        Raises:
            RequestFailed: the server is not there, has not the model, or fails.
        """
        predictions: list[Prediction] = []
        batches = read_batches(images, batch_bytes=self._batch_bytes, shrink=self._shrink)
        while (batch := (yield Read(batches))) is not None:
            encoded = [one.content for one in batch if one.failure is None]
            deadline = time.monotonic() + self._deadline_s
            answers = iter((yield from self._settle(encoded, top_k, deadline)) if encoded else [])
            for one in batch:
                answer = Prediction("", failure=one.failure) if one.failure else next(answers)
                named = replace(answer, path=one.name, converted_from=one.converted_from)
                predictions.append(named)
        return predictions

    def _settle(self, encoded: Sequence[bytes], top_k: int, deadline: float) -> Steps:
        """Ask for all; what the server could not decode is asked again alone, a few times.

        A native server decodes the requests of several callers as one batch and fails all of it for one bad
        image. After a pause of random length a good image meets other neighbours.
        """
        answers = yield from self._isolate(encoded, top_k, deadline)
        for attempt in range(LONE_REPEATS):
            suspects = [at for at, one in enumerate(answers) if isinstance(one.failure, DecodeFailed)]
            pause_s = backoff_s(attempt)
            if not suspects or time.monotonic() + pause_s >= deadline:
                break
            yield Pause(pause_s)
            for at in suspects:
                answers[at : at + 1] = yield from self._isolate(encoded[at : at + 1], top_k, deadline)
        return answers

    def _isolate(self, encoded: Sequence[bytes], top_k: int, deadline: float) -> Steps:
        """Ask; what is refused because of one image is asked in halves until that image is alone."""
        try:
            return (yield from self._ask(encoded, top_k, deadline))
        except (ImageRejected, Overloaded, DeadlineExceeded) as exc:
            if len(encoded) == 1 or not isinstance(exc, ImageRejected):
                return [Prediction("", failure=exc)] * len(encoded)
        half = len(encoded) // 2
        first = yield from self._isolate(encoded[:half], top_k, deadline)
        return first + (yield from self._isolate(encoded[half:], top_k, deadline))

    def _ask(self, encoded: Sequence[bytes], top_k: int, deadline: float) -> Steps:
        """One request, repeated while the server says "not now" and time is left."""
        failure: RequestFailed = DeadlineExceeded("no time was left to ask")
        attempt = 0
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                answers: list[Prediction] = yield Call(encoded, top_k, left_s)
            except RequestFailed as exc:
                pause_s = self._retry.pause_s(exc, attempt)
                if pause_s is None or time.monotonic() + pause_s >= deadline:
                    raise
                failure = exc
            else:
                self._retry.answered()
                return answers
            yield Pause(pause_s)
            attempt += 1
        raise failure

"""The gRPC client: encoded images in, predictions out, batched and in order."""

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from fruitstand.contract import (
    FRUIT_CLASSIFIER,
    IMAGE,
    MAX_BATCH_SIZE,
    PROBABILITIES,
    Preprocessing,
)
from fruitstand_client.errors import DeadlineExceeded, Overloaded, RequestRejected, translate
from fruitstand_client.prediction import Prediction, RankedLabel

Image = str | Path | bytes
"""A file's path, or a file's content."""

MAX_ENCODED_BYTES = Preprocessing().max_encoded_bytes
FIRST_BACKOFF_S = 0.05


class Client:
    """A connection to one server; safe to use from several threads."""

    def __init__(
        self, url: str, *, batch_size: int = 32, in_flight: int = 4, deadline_s: float = 30.0
    ) -> None:
        """Prepare a connection; the first call opens it.

        Args:
            url: HOST:PORT of the server's gRPC endpoint.
            batch_size: images in one request, 1 to 64.
            in_flight: requests under way at once.
            deadline_s: for each request with its repetitions, seconds. The server's own limit on waiting in
                its queue may be shorter.

        Raises:
            ValueError: a number outside what is allowed.
        """
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch_size: got {batch_size}, allowed 1 to {MAX_BATCH_SIZE}")
        if in_flight < 1 or deadline_s <= 0:
            raise ValueError(f"in_flight, deadline_s: got {in_flight}, {deadline_s}, allowed >= 1 and > 0")
        self._url, self._batch_size, self._in_flight = url, batch_size, in_flight
        self._deadline_s = deadline_s
        self._triton = triton.InferenceServerClient(url)
        self.latencies_ms: deque[float] = deque(maxlen=100_000)
        """Of the latest requests that were answered, milliseconds."""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._triton.close()

    def classify(self, images: Iterable[Image], *, top_k: int = 5) -> Iterator[Prediction]:
        """Classify any number of images, in batches, several requests at once.

        Args:
            images: paths or encoded files; read as they are needed, never all at once.
            top_k: classes in each answer.

        Yields:
            One prediction an image, in the order given. An image that cannot be read, that the server
            rejects, or that an overloaded server did not answer in time has its `error` set; the others
            are answered.

        Raises:
            ClientError: no server, no model, or a failing one; see `fruitstand_client.errors`.
        """
        self._check_served()
        named = (("" if isinstance(image, bytes) else str(image), image) for image in images)
        pending: deque[Future[list[Prediction]]] = deque()
        with ThreadPoolExecutor(self._in_flight, thread_name_prefix="fruitstand-client") as pool:
            try:
                while batch := list(islice(named, self._batch_size)):
                    pending.append(pool.submit(self._classify_named, batch, top_k))
                    # As many requests read ahead as are under way: memory stays flat.
                    if len(pending) >= 2 * self._in_flight:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def classify_batch(self, encoded: Sequence[bytes], *, top_k: int = 5) -> list[Prediction]:
        """Classify up to 64 encoded images in one request, in the calling thread, without repetition.

        Raises:
            RequestRejected: the server refuses one of the images, and with it the request.
            ClientError: the server did not answer.
        """
        result = self._infer(encoded, top_k)
        # The ensemble's version is the classifier's: export renders them together.
        version = result.get_response().model_version
        rows = result.as_numpy(PROBABILITIES).reshape(len(encoded), -1)
        return [Prediction("", tuple(_ranked(entry) for entry in row), version) for row in rows]

    def _check_served(self) -> None:
        """Say at once, not an image later, that there is no server or no model."""
        try:
            self._triton.get_model_metadata(FRUIT_CLASSIFIER, client_timeout=self._deadline_s)
        except InferenceServerException as exc:
            raise translate(exc, self._url) from exc

    def _classify_named(self, named: list[tuple[str, Image]], top_k: int) -> list[Prediction]:
        """Read one batch's images, ask for those that can be read, and put the answers in order."""
        contents: list[bytes | str] = [_read(image) for _, image in named]
        readable = [content for content in contents if isinstance(content, bytes)]
        answers = iter(self._classify_isolated(readable, top_k, time.monotonic() + self._deadline_s))
        return [
            replace(next(answers), path=name)
            if isinstance(content, bytes)
            else Prediction(name, error=content)
            for (name, _), content in zip(named, contents, strict=True)
        ]

    def _classify_isolated(self, batch: list[bytes], top_k: int, deadline: float) -> list[Prediction]:
        """Ask for a batch; what fails because of one image, or because of its size, is asked in parts."""
        if not batch:
            return []
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                return self.classify_batch(batch, top_k=top_k)
            except RequestRejected as exc:
                if len(batch) == 1:
                    return [Prediction("", error=str(exc))]
                parts = [[one] for one in batch]
            except (Overloaded, DeadlineExceeded) as exc:
                pause_s = backoff_s * random.uniform(0.5, 1.5)
                if isinstance(exc, DeadlineExceeded) or time.monotonic() + pause_s > deadline:
                    return [Prediction("", error=str(exc)) for _ in batch]
                time.sleep(pause_s)
                backoff_s *= 2
                if len(batch) == 1:
                    continue
                parts = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            return [answer for part in parts for answer in self._classify_isolated(part, top_k, deadline)]

    def _infer(self, encoded: Sequence[bytes], top_k: int) -> triton.InferResult:
        """One request: images zero-padded to the longest, as `allow_ragged_batch` wants them."""
        longest = max(map(len, encoded))
        rows = np.zeros((len(encoded), longest), np.uint8)
        for row, content in zip(rows, encoded, strict=True):
            row[: len(content)] = np.frombuffer(content, np.uint8)
        tensor = triton.InferInput(IMAGE, list(rows.shape), "UINT8")
        tensor.set_data_from_numpy(rows)
        output = triton.InferRequestedOutput(PROBABILITIES, class_count=top_k)
        started = time.perf_counter()
        try:
            result = self._triton.infer(
                FRUIT_CLASSIFIER,
                [tensor],
                outputs=[output],
                timeout=int(self._deadline_s * 1e6),
                client_timeout=self._deadline_s,
            )
        except InferenceServerException as exc:
            raise translate(exc, self._url) from exc
        self.latencies_ms.append((time.perf_counter() - started) * 1e3)
        return result


def _read(image: Image) -> bytes | str:
    """An image's content, or why it cannot be sent; a file that is too large is not read."""
    try:
        size = len(image) if isinstance(image, bytes) else Path(image).stat().st_size
        if size == 0:
            return "the image is empty (0 bytes)"
        if size > MAX_ENCODED_BYTES:
            return f"too many bytes: {size}, at most {MAX_ENCODED_BYTES} are allowed"
        return image if isinstance(image, bytes) else Path(image).read_bytes()
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"


def _ranked(entry: bytes) -> RankedLabel:
    """Triton writes each of `class_count` classes as PROBABILITY:INDEX:LABEL."""
    probability, _, label = entry.decode().split(":", 2)
    return RankedLabel(label, float(probability))

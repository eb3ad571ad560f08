"""The gRPC client: encoded images in, predictions out, batched and in order."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE, MAX_BATCH_SIZE, PROBABILITIES
from fruitstand_client.errors import RequestRejected, translate
from fruitstand_client.prediction import Prediction, RankedLabel

Image = str | Path | bytes
"""A file's path, or a file's content."""
Batch = list[tuple[str, bytes]]
Answer = TypeVar("Answer")


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
            deadline_s: for each request, in the queue and altogether, seconds.

        Raises:
            ValueError: a number outside what is allowed.
        """
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch_size: got {batch_size}, allowed 1 to {MAX_BATCH_SIZE}")
        if in_flight < 1 or deadline_s <= 0:
            raise ValueError(f"in_flight, deadline_s: got {in_flight}, {deadline_s}, allowed >= 1 and > 0")
        self._url, self._batch_size, self._in_flight = url, batch_size, in_flight
        self._deadline_s = deadline_s
        self._version: str | None = None
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
            One prediction an image, in the order given. An image that cannot be read or that the server
            rejects has its `error` set; the others of its batch are answered.

        Raises:
            ClientError: the server did not answer a request; see `fruitstand_client.errors`.
        """
        self._version = self.model_version()

        def ask(batch: Batch) -> list[Prediction]:
            predictions = self.classify_batch([encoded for _, encoded in batch], top_k=top_k)
            return [
                replace(prediction, path=name)
                for (name, _), prediction in zip(batch, predictions, strict=True)
            ]

        def failed(name: str, error: str) -> Prediction:
            return Prediction(name, error=error)

        yield from self._map(images, ask, failed)

    def classify_batch(self, encoded: Sequence[bytes], *, top_k: int = 5) -> list[Prediction]:
        """Classify up to 64 encoded images in one request, in the calling thread.

        Raises:
            RequestRejected: the server refuses one of the images, and with it the request.
            ClientError: the server did not answer.
        """
        if self._version is None:
            self._version = self.model_version()
        rows = self._infer(encoded, top_k).as_numpy(PROBABILITIES).reshape(len(encoded), -1)
        return [Prediction("", tuple(_ranked(entry) for entry in row), self._version) for row in rows]

    def probabilities(self, images: Iterable[Image]) -> Iterator[npt.NDArray[np.float32] | str]:
        """The probabilities of all classes for each image, in the order of the model's outputs.

        Yields:
            (num_classes,) float32, or the reason why the image has no answer.

        Raises:
            ClientError: the server did not answer a request.
        """

        def ask(batch: Batch) -> list[npt.NDArray[np.float32] | str]:
            return list(self._infer([encoded for _, encoded in batch], None).as_numpy(PROBABILITIES))

        def failed(_: str, error: str) -> npt.NDArray[np.float32] | str:
            return error

        yield from self._map(images, ask, failed)

    def model_version(self) -> str:
        """The classifier's newest version on the server.

        Raises:
            ClientError: no server, or it does not serve the classifier.
        """
        try:
            metadata = self._triton.get_model_metadata(FRUIT_RESNET, client_timeout=self._deadline_s)
        except InferenceServerException as exc:
            raise translate(exc, self._url) from exc
        return str(max(metadata.versions, key=int))

    def _map(
        self,
        images: Iterable[Image],
        ask: Callable[[Batch], list[Answer]],
        failed: Callable[[str, str], Answer],
    ) -> Iterator[Answer]:
        """Answer images in order, with at most `in_flight` requests under way and as many read ahead."""

        def answer(named: list[tuple[str, Image]]) -> list[Answer]:
            readable: Batch = []
            errors: dict[int, str] = {}
            for position, (name, image) in enumerate(named):
                try:
                    readable.append((name, image if isinstance(image, bytes) else Path(image).read_bytes()))
                    if not readable[-1][1]:
                        readable.pop()
                        errors[position] = "the image is empty (0 bytes)"
                except OSError as exc:
                    errors[position] = f"cannot be read: {exc.strerror}"
            answers = iter(self._ask_isolated(readable, ask, failed))
            return [
                failed(name, errors[position]) if position in errors else next(answers)
                for position, (name, _) in enumerate(named)
            ]

        names = ((str(image) if not isinstance(image, bytes) else "", image) for image in images)
        pending: deque[Future[list[Answer]]] = deque()
        with ThreadPoolExecutor(self._in_flight, thread_name_prefix="fruitstand-client") as pool:
            try:
                while batch := list(islice(names, self._batch_size)):
                    pending.append(pool.submit(answer, batch))
                    if len(pending) >= 2 * self._in_flight:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _ask_isolated(
        self,
        batch: Batch,
        ask: Callable[[Batch], list[Answer]],
        failed: Callable[[str, str], Answer],
    ) -> list[Answer]:
        """Ask for a batch; when it is rejected for one image, ask for each alone."""
        if not batch:
            return []
        try:
            return ask(batch)
        except RequestRejected as exc:
            if len(batch) == 1:
                return [failed(batch[0][0], str(exc))]
            return [answer for one in batch for answer in self._ask_isolated([one], ask, failed)]

    def _infer(self, encoded: Sequence[bytes], top_k: int | None) -> triton.InferResult:
        """One request: images zero-padded to the longest, as `allow_ragged_batch` wants them."""
        longest = max(map(len, encoded))
        rows = np.zeros((len(encoded), longest), np.uint8)
        for row, content in zip(rows, encoded, strict=True):
            row[: len(content)] = np.frombuffer(content, np.uint8)
        tensor = triton.InferInput(IMAGE, list(rows.shape), "UINT8")
        tensor.set_data_from_numpy(rows)
        output = triton.InferRequestedOutput(PROBABILITIES, class_count=top_k or 0)
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


def _ranked(entry: bytes) -> RankedLabel:
    """Triton writes each of `class_count` classes as PROBABILITY:INDEX:LABEL."""
    probability, _, label = entry.decode().split(":", 2)
    return RankedLabel(label, float(probability))

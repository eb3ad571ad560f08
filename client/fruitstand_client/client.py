"""The gRPC clients: they send images in batches, several requests at once, and yield predictions in order.

Both run the same `fruitstand_client.exchange`: `Client` blocks, `AsyncClient` awaits. gRPC and numpy are
loaded with the first client, not with the import.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from fruitstand.contract import FRUIT_CLASSIFIER, MAX_BATCH_SIZE
from fruitstand.errors import UsageError
from fruitstand.network.tls import Tls
from fruitstand_client.errors import RequestCancelled
from fruitstand_client.exchange import Call, Exchange, Transport
from fruitstand_client.images import MAX_ENCODED_BYTES, EncodedImage, Image, read_image
from fruitstand_client.prediction import Prediction

if TYPE_CHECKING:
    from fruitstand_client.explanation import Explanation

BATCH_BYTES = 2 * MAX_ENCODED_BYTES


class _Connection:
    """Settings and state common to both clients."""

    _asynchronous: bool

    def __init__(
        self,
        url: str,
        *,
        model: str = FRUIT_CLASSIFIER,
        batch_size: int = 32,
        batch_bytes: int = BATCH_BYTES,
        in_flight: int = 4,
        deadline_s: float = 30.0,
        tls: Tls | None = None,
        api_key: str | None = None,
        keepalive_s: float | None = None,
        shrink: bool = False,
        abstain: bool = False,
    ) -> None:
        """Prepare a connection; the first call opens it.

        Args:
            url: HOST:PORT of the server's gRPC endpoint. Requests rotate over several comma-separated
                endpoints, or several addresses of one name, and skip those that are down.
            model: name of the classifier, such as birds_classifier, if the server has another or several.
            batch_size: images in one request, 1 to 64.
            batch_bytes: bytes in one request, at least 8 MiB, the largest image; images are padded to the
                largest one in their request.
            in_flight: requests in flight. Memory holds at most this many, and the images read ahead fill at
                most as many again.
            deadline_s: seconds for each request with its retries. It also limits the time in the server's
                queue, unless the server's own limit is shorter.
            tls: encrypts the connection.
            api_key: sent with each request; without `tls` only on loopback.
            keepalive_s: seconds without traffic before a ping. By default, Triton closes the connection of a
                client that pings more often than every 300 s.
            shrink: send large images as JPEGs of 512 pixels on the shorter side; needs Pillow.
            abstain: give no label to an image that shows no known class.

        Raises:
            ValueError: a number outside what is allowed.
            UsageError: no address, a TLS file that cannot be read, an API key that needs `tls`, or grpcio or
                protobuf older than tritonclient needs.
        """
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch_size: got {batch_size}, allowed 1 to {MAX_BATCH_SIZE}")
        if batch_bytes < MAX_ENCODED_BYTES:
            raise ValueError(f"batch_bytes: got {batch_bytes}, allowed >= {MAX_ENCODED_BYTES}")
        if in_flight < 1 or deadline_s <= 0:
            raise ValueError(f"in_flight, deadline_s: got {in_flight}, {deadline_s}, allowed >= 1 and > 0")
        if keepalive_s is not None and keepalive_s < 1:
            raise ValueError(f"keepalive_s: got {keepalive_s}, allowed >= 1")
        try:
            from fruitstand_client.wire import Wire
        except ModuleNotFoundError:
            raise
        except Exception as exc:  # with older libraries, generated code raises various errors
            raise UsageError(
                f"{' '.join(str(exc).split())} (pip install --upgrade grpcio protobuf tritonclient)"
            ) from exc

        self._model = model
        self._batch_size, self._in_flight, self._deadline_s = batch_size, in_flight, deadline_s
        self._abstain = abstain
        self._exchange = Exchange(deadline_s=deadline_s, batch_bytes=batch_bytes, shrink=shrink)
        self._wire: Wire = Wire(
            url, tls=tls, api_key=api_key, keepalive_s=keepalive_s, asynchronous=self._asynchronous
        )
        self.latencies_ms: deque[float] = deque(maxlen=100_000)
        """Latencies of the latest answered requests, milliseconds."""

    async def _ask(self, call: Call) -> list[Prediction]:
        """Send one request; suspends in the async client only."""
        import grpc

        request = self._wire.request(call.encoded, call.top_k, call.timeout_s, model=self._model)
        started = time.perf_counter()
        try:
            response = self._wire.infer(
                request, timeout=call.timeout_s, metadata=self._wire.metadata(request)
            )
            if self._asynchronous:
                response = await response
        except grpc.RpcError as exc:
            failure = self._wire.failure(exc, request)
            if self._wire.asks_less(self._model, failure):
                return await self._ask(call)
            raise failure from exc
        self.latencies_ms.append((time.perf_counter() - started) * 1e3)
        answers = self._wire.predictions(response, len(call.encoded))
        return [replace(one, abstain=True) for one in answers] if self._abstain else answers


class Client(_Connection):
    """The blocking client; it may be shared by several threads, and works under gevent."""

    _asynchronous = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests in flight are cancelled."""
        self._wire.channel.close()

    def classify(self, images: Iterable[Image], *, top_k: int = 5) -> list[Prediction]:
        """Classify images; see `classify_stream`, which takes any number of them."""
        return list(self.classify_stream(images, top_k=top_k))

    def classify_stream(self, images: Iterable[Image], *, top_k: int = 5) -> Iterator[Prediction]:
        """Classify a stream of images in batches, with several requests in flight and constant memory.

        Args:
            images: paths, encoded files, open files or (H, W, 3) uint8 arrays; read when they are needed,
                never all at once.
            top_k: classes in each answer.

        Yields:
            One prediction an image, in the order given. An image that cannot be read, that the server
            rejects, or that an overloaded server did not answer in time has its `failure` set; the others
            are answered.

        Raises:
            RequestFailed: no server, no model, or a failing one; see `fruitstand_client.errors`.
        """
        source = iter(images)
        groups = iter(lambda: list(islice(source, self._batch_size)), [])
        ahead, stopped = list(islice(groups, 2)), threading.Event()
        if len(ahead) < 2:  # a single request needs no thread
            for group in ahead:
                yield from self._answer(group, top_k, stopped)
            return
        pending: deque[Future[list[Prediction]]] = deque()
        with ThreadPoolExecutor(self._in_flight, thread_name_prefix="fruitstand-client") as pool:
            try:
                for group in chain(ahead, groups):
                    run = copy_context().run  # the caller's trace
                    pending.append(pool.submit(run, self._answer, group, top_k, stopped))
                    while pending and (len(pending) >= 2 * self._in_flight or pending[0].done()):
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                stopped.set()
                for future in pending:
                    future.cancel()

    def classify_batch(self, encoded: Sequence[bytes], *, top_k: int = 5) -> list[Prediction]:
        """Classify up to 64 encoded images in one request, in the calling thread, without retries.

        Raises:
            ImageRejected: the server refuses one of the images, and with it the request.
            RequestFailed: the server did not answer.
        """
        return _finished(self._ask(Call(encoded, top_k, self._deadline_s)))

    def explain(self, image: Image) -> "Explanation":
        """Explain the answer to an image; the served version must have been exported with an explainer.

        Raises:
            ImageRejected: the image cannot be read, or the server refuses it.
            ModelNotFound: the server has no explainer.
            RequestFailed: the server did not answer.
        """
        import grpc

        from fruitstand_client.explanation import explain_request, read_explanation

        read = read_image(image)
        if read.failure is not None:
            raise read.failure
        request = explain_request(self._wire, read.content, self._deadline_s, model=self._model)
        try:
            response = self._wire.infer(
                request, timeout=self._deadline_s, metadata=self._wire.metadata(request)
            )
        except grpc.RpcError as exc:
            raise self._wire.failure(exc, request) from exc
        return read_explanation(response)

    def _answer(self, group: list[Image], top_k: int, stopped: threading.Event) -> list[Prediction]:
        """Classify a group of images in this thread; setting `stopped` ends a pause early."""

        async def read(batches: Iterator[list[EncodedImage]]) -> list[EncodedImage] | None:
            return next(batches, None)

        async def pause(seconds: float) -> None:
            if stopped.wait(seconds):
                raise RequestCancelled("the caller stopped waiting")

        return _finished(self._exchange.answer(group, top_k, Transport(self._ask, read, pause)))


def _finished(work: Coroutine[Any, Any, list[Prediction]]) -> list[Prediction]:
    """Run a coroutine that never suspends, without an event loop."""
    try:
        work.send(None)
    except StopIteration as done:
        predictions: list[Prediction] = done.value
        return predictions
    raise AssertionError("a blocking transport has suspended")


class AsyncClient(_Connection):
    """The async client; may be created outside of an event loop, and used in several.

    Each event loop gets its own connection, which closes with the loop or with `close` in it.
    """

    _asynchronous = True

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; requests in flight are cancelled."""
        await self._wire.channel.close()

    async def classify(
        self, images: Iterable[Image] | AsyncIterable[Image], *, top_k: int = 5
    ) -> list[Prediction]:
        """Classify images; see `Client.classify`."""
        return [one async for one in self.classify_stream(images, top_k=top_k)]

    async def classify_stream(
        self, images: Iterable[Image] | AsyncIterable[Image], *, top_k: int = 5
    ) -> AsyncIterator[Prediction]:
        """Classify a stream of images, see `Client.classify_stream`; files are read in threads."""
        pending: deque[asyncio.Task[list[Prediction]]] = deque()
        room = asyncio.Semaphore(self._in_flight)
        transport = Transport(self._ask, _read, asyncio.sleep)

        async def answer(group: list[Image]) -> list[Prediction]:
            async with room:
                return await self._exchange.answer(group, top_k, transport)

        try:
            async for group in _groups(images, self._batch_size):
                pending.append(asyncio.create_task(answer(group)))
                while pending and (len(pending) >= 2 * self._in_flight or pending[0].done()):
                    for one in await pending.popleft():
                        yield one
            while pending:
                for one in await pending.popleft():
                    yield one
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


async def _read(batches: Iterator[list[EncodedImage]]) -> list[EncodedImage] | None:
    """Run in a thread, so that the event loop is not blocked."""
    return await asyncio.to_thread(next, batches, None)


async def _groups(images: Iterable[Image] | AsyncIterable[Image], size: int) -> AsyncIterator[list[Image]]:
    """Cut a plain or an async iterable into lists of `size`."""
    if isinstance(images, AsyncIterable):
        group: list[Image] = []
        async for image in images:
            group.append(image)
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group
    else:
        source = iter(images)
        while group := list(islice(source, size)):
            yield group

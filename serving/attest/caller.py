"""Raw KServe V2 calls over gRPC to the server under test; each returns status, text and latency."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fruitstand.contract import API_KEY_HEADER, IMAGE, PROBABILITIES
from fruitstand.errors import UsageError
from fruitstand.network.connections import open_channel, parse_endpoints
from fruitstand.network.tls import Tls
from fruitstand.repository.model_names import ModelNames

CHANNELS = 4
"""Connections to spread bursts over: Envoy allows a few hundred streams on each."""
OK = "OK"
LOST = re.compile(r"failed to connect|Connection (?:refused|reset)|Socket closed|recvmsg|GOAWAY")
"""gRPC's messages for a broken connection. A full queue is UNAVAILABLE too, with the server's message."""
ENVOY_HEADER = "x-envoy-upstream-service-time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The outcome of one call, answered or failed."""

    status: str
    """gRPC status by name, such as OK or INVALID_ARGUMENT."""
    text: str
    latency_s: float
    response: Any = None
    through_envoy: bool = False

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.status == OK

    @property
    def lost(self) -> bool:
        """Whether the connection broke: the server is gone, it did not refuse the request."""
        return self.status == "UNAVAILABLE" and LOST.search(self.text) is not None

    @property
    def version(self) -> int | None:
        """The model version that answered; None when the server does not name one."""
        text = self.response.model_version if self.response is not None else ""
        return int(text) if text.isdecimal() else None

    def array(self, name: str = PROBABILITIES) -> np.ndarray | None:
        """An output tensor in its own shape and dtype; None when the call failed or lacks that output."""
        if self.response is None:
            return None
        types = {"FP32": np.float32, "UINT8": np.uint8}
        for position, output in enumerate(self.response.outputs):
            if output.name == name and output.datatype in types:
                if position < len(self.response.raw_output_contents):
                    flat = np.frombuffer(self.response.raw_output_contents[position], types[output.datatype])
                else:
                    flat = np.array(output.contents.fp32_contents or output.contents.uint_contents)
                    flat = flat.astype(types[output.datatype])
                return flat.reshape(tuple(output.shape)) if flat.size == np.prod(output.shape) else None
        return None

    def __str__(self) -> str:
        words = " ".join(self.text.split())
        return self.status if self.ok or not words else f"{self.status}: {words[:160]}"


class Server:
    """The gRPC endpoint under test, an async context manager."""

    def __init__(
        self, url: str, *, names: ModelNames, tls: Tls | None, api_key: str | None, timeout_s: float
    ) -> None:
        """Check the address; connections open when the context is entered.

        Raises:
            UsageError: not HOST:PORT, or an API key would be sent in clear text.
        """
        endpoints = parse_endpoints(url)
        if len(endpoints) > 1:
            raise UsageError(f"{url}: attest checks one server; give one HOST:PORT")
        self.url, self.names, self.timeout_s = url, names, timeout_s
        self.on_loopback = endpoints[0].is_loopback
        if api_key and tls is None and not self.on_loopback:
            raise UsageError("an API key leaves this machine only with TLS: give --ca or --cert")
        self._tls = tls
        self._metadata = ((API_KEY_HEADER, api_key),) if api_key else ()
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Any] = []
        self._turn = 0
        self.error_texts: list[str] = []
        """The message of every call that failed."""

    async def __aenter__(self) -> "Server":
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
        credentials = grpc.ssl_channel_credentials(**self._tls.read()) if self._tls else None
        self._channels = [
            open_channel(self.url, credentials=credentials, options=options, asynchronous=True)
            for _ in range(CHANNELS)
        ]
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Answer:
        """Call any method of the protocol by name."""
        self._turn += 1
        stub = self._stubs[self._turn % CHANNELS]
        started = time.monotonic()
        pending = getattr(stub, method)(request, timeout=timeout_s or self.timeout_s, metadata=self._metadata)
        try:
            response = await pending
        except grpc.aio.AioRpcError as exc:
            latency_s, text = time.monotonic() - started, exc.details() or ""
            self.error_texts.append(text)
            envoy = _has_envoy(exc.initial_metadata())
            return Answer(status=exc.code().name, text=text, latency_s=latency_s, through_envoy=envoy)
        latency_s = time.monotonic() - started
        envoy = _has_envoy(await pending.initial_metadata())
        return Answer(status=OK, text="", latency_s=latency_s, response=response, through_envoy=envoy)

    async def classify(self, image: bytes, **options: Any) -> Answer:
        """Classify one encoded image with the ensemble."""
        encoded = np.frombuffer(image, np.uint8)[None]
        return await self.infer(self.names.classifier, IMAGE, encoded, **options)

    async def infer(
        self, model: str, tensor: str, array_u8: np.ndarray, *, timeout_s: float | None = None, **options: Any
    ) -> Answer:
        """Send one ModelInfer request; `options` are those of `infer_request`."""
        return await self.call(
            "ModelInfer", infer_request(model, tensor, array_u8, **options), timeout_s=timeout_s
        )

    async def classify_all(
        self,
        images: Sequence[bytes],
        *,
        in_flight: int,
        model: str | None = None,
        tensor: str = IMAGE,
        output: str = PROBABILITIES,
    ) -> list[Answer]:
        """Send each image in its own request, at most `in_flight` at a time; answers come in input order."""
        asked = model or self.names.classifier
        gate = asyncio.Semaphore(in_flight)

        async def one(image: bytes) -> Answer:
            async with gate:
                return await self.infer(asked, tensor, np.frombuffer(image, np.uint8)[None], output=output)

        return list(await asyncio.gather(*map(one, images)))


def infer_request(
    model: str,
    tensor: str,
    array_u8: np.ndarray,
    *,
    output: str = PROBABILITIES,
    version: int | None = None,
    num_classes: int = 0,
    queue_timeout_us: int = 0,
) -> Any:
    """Build a ModelInfer request.

    Args:
        model: the model's name.
        tensor: the input's name.
        array_u8: uint8, the batch axis first.
        output: the name of the requested output.
        version: the model version; None leaves the choice to the server.
        num_classes: request the top labels, that many, instead of the tensor; 0 requests the tensor.
        queue_timeout_us: longest wait in a queue; 0 keeps the server's own limit.
    """
    request = service_pb2.ModelInferRequest(
        model_name=model,
        model_version="" if version is None else str(version),
        raw_input_contents=[array_u8.tobytes()],
    )
    request.inputs.add(name=tensor, datatype="UINT8").shape.extend(array_u8.shape)
    asked = request.outputs.add(name=output)
    if num_classes:
        asked.parameters["classification"].int64_param = num_classes
    if queue_timeout_us:
        request.parameters["timeout"].int64_param = queue_timeout_us
    return request


def padded_batch(images: Sequence[bytes]) -> np.ndarray:
    """Several files as one (N, longest) uint8 array; shorter files are padded with zero bytes."""
    longest = max(map(len, images))
    joined = b"".join(image.ljust(longest, b"\0") for image in images)
    return np.frombuffer(joined, np.uint8).reshape(len(images), longest)


def _has_envoy(metadata: Any) -> bool:
    return any(key == ENVOY_HEADER or (key, value) == ("server", "envoy") for key, value in metadata or ())

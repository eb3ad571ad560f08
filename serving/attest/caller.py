"""Calls to the server under test: raw KServe V2 over gRPC, every answer with its status and its time."""

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

from fruitstand.contract import API_KEY_HEADER, FRUIT_CLASSIFIER, IMAGE, PROBABILITIES
from fruitstand.errors import UsageError
from fruitstand.network.connections import open_channel, parse_endpoints
from fruitstand.network.tls import Tls

CHANNELS = 4
"""Connections for bursts: Envoy and others allow some hundred streams on each."""
OK = "OK"
LOST = re.compile(r"failed to connect|Connection (?:refused|reset)|Socket closed|recvmsg|GOAWAY")
"""gRPC's own words where nobody answers; a full queue is UNAVAILABLE in the server's words."""
ENVOY_HEADER = "x-envoy-upstream-service-time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one call came back with."""

    status: str
    """gRPC status by name, such as OK or INVALID_ARGUMENT."""
    text: str
    latency_s: float
    response: Any = None
    through_envoy: bool = False

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.status == OK

    @property
    def lost(self) -> bool:
        """Whether the connection failed, not the request: the server, or its host, is gone."""
        return self.status == "UNAVAILABLE" and LOST.search(self.text) is not None

    @property
    def version(self) -> int | None:
        """The model version that answered; None where the server does not say it as a number."""
        text = self.response.model_version if self.response is not None else ""
        return int(text) if text.isdecimal() else None

    def array(self, name: str = PROBABILITIES) -> np.ndarray | None:
        """An output; None where the call failed or has no such output in raw form."""
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
    """The endpoint under test; use as an async context manager."""

    def __init__(self, url: str, *, tls: Tls | None, api_key: str | None, timeout_s: float) -> None:
        """Prepare connections; nothing is sent yet.

        Args:
            url: HOST:PORT.
            tls: encrypts the connection; None speaks clear text.
            api_key: sent with each call; in clear text only to this machine.
            timeout_s: of a call that names no other.

        Raises:
            UsageError: not HOST:PORT, or an API key that would travel in clear text.
        """
        endpoints = parse_endpoints(url)
        if len(endpoints) > 1:
            raise UsageError(f"{url}: attest holds one server against its repository; name one HOST:PORT")
        self.url, self.timeout_s = url, timeout_s
        self.on_loopback = endpoints[0].is_loopback
        if api_key and tls is None and not self.on_loopback:
            raise UsageError("an API key leaves this machine only with TLS: give --ca or --cert")
        self._tls = tls
        self._metadata = ((API_KEY_HEADER, api_key),) if api_key else ()
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Any] = []
        self._turn = 0
        self.error_texts: list[str] = []
        """Of every call that failed on the server's side."""

    async def __aenter__(self) -> "Server":
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        credentials = grpc.ssl_channel_credentials(**self._tls.read()) if self._tls else None
        for _ in range(CHANNELS):
            self._channels.append(
                open_channel(self.url, credentials=credentials, options=options, asynchronous=True)
            )
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Answer:
        """One call of any method of the protocol."""
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
        """One encoded image through the ensemble."""
        return await self.infer(FRUIT_CLASSIFIER, IMAGE, np.frombuffer(image, np.uint8)[None], **options)

    async def infer(
        self, model: str, tensor: str, array_u8: np.ndarray, *, timeout_s: float | None = None, **options: Any
    ) -> Answer:
        """One inference; `options` are those of `infer_request`."""
        return await self.call(
            "ModelInfer", infer_request(model, tensor, array_u8, **options), timeout_s=timeout_s
        )

    async def classify_all(
        self,
        images: Sequence[bytes],
        *,
        in_flight: int,
        model: str = FRUIT_CLASSIFIER,
        tensor: str = IMAGE,
        output: str = PROBABILITIES,
    ) -> list[Answer]:
        """Each image in a request of its own, so many at the same time; in order."""
        gate = asyncio.Semaphore(in_flight)

        async def one(image: bytes) -> Answer:
            async with gate:
                return await self.infer(model, tensor, np.frombuffer(image, np.uint8)[None], output=output)

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
    """A ModelInfer request.

    Args:
        model: its name.
        tensor: the input's name.
        array_u8: uint8, the batch axis first.
        output: the output asked for.
        version: of the model; None leaves the choice to the server.
        num_classes: ask for so many labels instead of the numbers; 0 asks for the numbers.
        queue_timeout_us: how long it may wait in a queue; 0 takes the server's own limit.
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
    """Several files as one (N, longest) uint8 request, zero bytes behind the shorter ones."""
    longest = max(map(len, images))
    joined = b"".join(image.ljust(longest, b"\0") for image in images)
    return np.frombuffer(joined, np.uint8).reshape(len(images), longest)


def _has_envoy(metadata: Any) -> bool:
    return any(key == ENVOY_HEADER or (key, value) == ("server", "envoy") for key, value in metadata or ())

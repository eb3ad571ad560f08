"""KServe V2 over gRPC: messages, channel and errors.

Uses gRPC directly with tritonclient's message classes, because tritonclient's own client makes an array, a
tensor object and three copies for every request.
"""

import asyncio
import json
import re
import secrets
import struct
import sys
from collections.abc import Sequence
from itertools import count
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from fruitstand.contract import API_KEY_HEADER, FRUIT_CLASSIFIER, IMAGE, KNOWN, PROBABILITIES, SET_SIZE
from fruitstand.errors import UsageError
from fruitstand.network.connections import Endpoint, open_channel, parse_endpoints, proxy_variable
from fruitstand.network.tls import Tls
from fruitstand_client.errors import RequestFailed, ServerFailure, translate
from fruitstand_client.prediction import Prediction, RankedLabel

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
QUEUE_SHARE = 0.45
"""Share of a request's deadline that it may wait in one of the server's queues.

There are two, one for each step, and Triton counts anew in each: so the server gives up before the client.
"""
MAX_RECONNECT_BACKOFF_MS = 1000
KEEPALIVE_TIMEOUT_MS = 5000
"""Timeout of a keepalive ping; gRPC's default of 20 s is too long."""
REQUEST_ID_HEADER = "x-request-id"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
_LENGTH = struct.Struct("<I")


class Wire:
    """A client's channel and messages; the clients make the calls."""

    def __init__(
        self,
        url: str,
        *,
        tls: Tls | None,
        api_key: str | None,
        keepalive_s: float | None,
        asynchronous: bool,
    ) -> None:
        """Prepare a channel; the first call opens it.

        Raises:
            UsageError: no address, a name that is not found, a TLS file that cannot be read, or an API key
                that would leave this machine in clear text.
        """
        self.url = url
        proxy = proxy_variable(url)
        self._name = f"{url} through the proxy in {proxy}" if proxy else url
        self._ids = count(1)
        self._without_known: set[str] = set()
        self._prefix = secrets.token_hex(4)
        self._key = [(API_KEY_HEADER, api_key)] if api_key else []
        endpoints = parse_endpoints(url)
        if api_key and tls is None and not all(one.is_loopback for one in endpoints):
            raise UsageError(
                f"{url}: an API key is only sent over TLS; name the CA to trust (--ca, or in"
                " Python tls=Tls()), or send no key"
            )
        self._asynchronous = asynchronous
        self._options = _options(endpoints, keepalive_s)
        self._credentials = None
        if tls is not None:
            name = tls.server_name or (endpoints[0].host if len(endpoints) > 1 else None)
            if name is not None:
                self._options.append(("grpc.ssl_target_name_override", name))
            self._credentials = grpc.ssl_channel_credentials(**tls.read())
        self._opened: dict[asyncio.AbstractEventLoop | None, tuple[Any, Any]] = {}
        if not asynchronous:
            self._open()

    @property
    def channel(self) -> Any:
        """The channel; each event loop has its own asynchronous one."""
        return self._open()[0]

    @property
    def infer(self) -> Any:
        """The call that sends a `ModelInferRequest`."""
        return self._open()[1]

    def _open(self) -> tuple[Any, Any]:
        loop = asyncio.get_running_loop() if self._asynchronous else None
        if loop not in self._opened:
            for other in list(self._opened):  # remove channels of closed event loops
                if other is not None and other.is_closed():
                    del self._opened[other]
            channel = open_channel(
                self.url,
                credentials=self._credentials,
                options=self._options,
                asynchronous=self._asynchronous,
            )
            infer = channel.unary_unary(
                MODEL_INFER,
                request_serializer=service_pb2.ModelInferRequest.SerializeToString,
                response_deserializer=service_pb2.ModelInferResponse.FromString,
            )
            self._opened[loop] = channel, infer
        return self._opened[loop]

    def request(
        self, encoded: Sequence[bytes], top_k: int, timeout_s: float, *, model: str = FRUIT_CLASSIFIER
    ) -> Any:
        """Build a ModelInferRequest; shorter images are zero-padded to the longest."""
        longest = max(map(len, encoded))
        request = service_pb2.ModelInferRequest(model_name=model, id=f"{self._prefix}-{next(self._ids)}")
        request.parameters["timeout"].int64_param = int(timeout_s * QUEUE_SHARE * 1e6)
        tensor = request.inputs.add(name=IMAGE, datatype="UINT8")
        tensor.shape.extend((len(encoded), longest))
        output = request.outputs.add(name=PROBABILITIES)
        output.parameters["classification"].int64_param = top_k
        if model not in self._without_known:
            request.outputs.add(name=KNOWN)
            request.outputs.add(name=SET_SIZE)
        request.raw_input_contents.append(b"".join([one.ljust(longest, b"\0") for one in encoded]))
        return request

    def metadata(self, request: Any) -> list[tuple[str, str]]:
        """Metadata of a request: an id for the gateway's log, the API key, and the caller's trace."""
        return [(REQUEST_ID_HEADER, request.id), *self._key, *trace_headers()]

    def predictions(self, response: Any, num_images: int) -> list[Prediction]:
        """Read the predictions from a ModelInferResponse, without names.

        Raises:
            ServerFailure: the response does not answer that many images.
        """
        try:
            names = [output.name for output in response.outputs] or [PROBABILITIES]
            raw = dict(zip(names, response.raw_output_contents, strict=True))
            entries = strings(raw[PROBABILITIES])
            known, sizes = (_floats(raw.get(name), num_images) for name in (KNOWN, SET_SIZE))
            top_k, rest = divmod(len(entries), num_images)
            if rest or not top_k:
                raise ValueError(f"{len(entries)} classes for {num_images} images")
            ranked = [_ranked(entry) for entry in entries]
        except (ValueError, KeyError, struct.error) as exc:
            raise ServerFailure(f"{self.url}: an answer that cannot be read: {exc}") from exc
        # The ensemble's version equals the classifier's, because export renders them together.
        version = response.model_version
        predictions = []
        for number, (one_known, size) in enumerate(zip(known, sizes, strict=True)):
            best = tuple(ranked[number * top_k : (number + 1) * top_k])
            label_set = None if size is None else tuple(one.label for one in best[: int(size)])
            predictions.append(Prediction("", best, version, known=one_known, label_set=label_set))
        return predictions

    def asks_less(self, model: str, failure: RequestFailed) -> bool:
        """Whether a request failed because the served version has no `KNOWN` output.

        Later requests to that model do not ask for it.
        """
        if not re.search(f"unexpected inference output '({KNOWN}|{SET_SIZE})'", str(failure)):
            return False
        self._without_known.add(model)
        return True

    def failure(self, error: grpc.RpcError, request: Any) -> RequestFailed:
        """Translate the error of a failed call."""
        return translate(
            error.code().name,
            error.details() or "",
            self._name,
            pushback_s=_pushback_s(error.trailing_metadata()),
            request_id=request.id,
        )


def trace_headers() -> list[tuple[str, str]]:
    """Headers of the caller's trace: W3C's `traceparent`, and others of the configured propagator.

    Empty if the calling program has not imported OpenTelemetry; it is not imported here.
    """
    if "opentelemetry.trace" not in sys.modules:
        return []
    from opentelemetry.propagate import inject

    headers: dict[str, str] = {}
    inject(headers)
    return [(name.lower(), value) for name, value in headers.items()]  # gRPC requires lower case


def strings(tensor: bytes) -> list[bytes]:
    """Parse a BYTES tensor: each element follows its length, 4 bytes little-endian."""
    found, position = [], 0
    while position < len(tensor):
        (length,) = _LENGTH.unpack_from(tensor, position)
        position += 4 + length
        found.append(tensor[position - length : position])
    return found


def _floats(tensor: bytes | None, count: int) -> list[float | None]:
    """Values of an FP32 output, one per image; None for each if the output is missing."""
    return [None] * count if tensor is None else list(struct.unpack(f"<{count}f", tensor))


def _ranked(entry: bytes) -> RankedLabel:
    """Parse one of Triton's classes, PROBABILITY:INDEX:LABEL."""
    probability, _, label = entry.decode().split(":", 2)
    return RankedLabel(label, float(probability))


def ranked_labels(tensor: bytes) -> tuple[tuple[RankedLabel, ...], dict[int, str]]:
    """One image's classes, the most probable first, and the label of each by its index."""
    entries = strings(tensor)
    names = {int(index): label for _, index, label in (one.decode().split(":", 2) for one in entries)}
    return tuple(map(_ranked, entries)), names


def _pushback_s(trailers: Any) -> float | None:
    """Seconds that the server requests before a retry; a value that is not a number forbids it."""
    for key, value in trailers or ():
        if key == PUSHBACK_KEY:
            return int(value) / 1e3 if re.fullmatch(r"\d{1,9}", str(value)) else -1.0
    return None


def _options(endpoints: list[Endpoint], keepalive_s: float | None) -> list[tuple[str, Any]]:
    # localhost has two addresses, and a server may listen on one: the other's error would hide the real one.
    policy = "pick_first" if [one.host for one in endpoints] == ["localhost"] else "round_robin"
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{policy: {}}]})),
        # Reconnect to a restarted server within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
    ]
    if keepalive_s is not None:
        options += [
            ("grpc.keepalive_time_ms", int(keepalive_s * 1e3)),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return options

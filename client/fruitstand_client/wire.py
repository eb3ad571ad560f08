"""KServe V2 over gRPC: one request's messages, the channel they take, and what gRPC's errors mean.

Speaks through gRPC itself with tritonclient's message classes: its own client makes an array, a tensor object
and three copies of every request.
"""

import ipaddress
import json
import logging
import re
import secrets
import socket
import struct
from collections.abc import Sequence
from itertools import count
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from fruitstand.contract import API_KEY_HEADER, FRUIT_CLASSIFIER, IMAGE, PROBABILITIES
from fruitstand.errors import UsageError
from fruitstand.tls import Tls
from fruitstand_client.errors import RequestFailed, ServerFailure, translate
from fruitstand_client.prediction import Prediction, RankedLabel
from fruitstand_client.tracing import trace_headers

log = logging.getLogger("fruitstand.client")

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
QUEUE_SHARE = 0.45
"""Of the time a request has, what it may wait in one of the server's queues.

There are two, one for each step, and Triton counts anew in each: so the server gives up before the client.
"""
MAX_RECONNECT_BACKOFF_MS = 1000
KEEPALIVE_TIMEOUT_MS = 5000
"""For the answer to a ping; gRPC's own 20 s are many calls."""
REQUEST_ID_HEADER = "x-request-id"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
_LENGTH = struct.Struct("<I")


class Wire:
    """One channel's side of the protocol; the calls themselves are the driver's."""

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
        self._ids = count(1)
        self._prefix = secrets.token_hex(4)
        self._key = [(API_KEY_HEADER, api_key)] if api_key else []
        endpoints = _endpoints(url)
        if api_key and tls is None and not all(_is_loopback(host) for host, _ in endpoints):
            raise UsageError(
                f"{url}: an API key leaves this machine only encrypted; name the CA to trust (--ca, or in"
                " Python tls=Tls()), or send no key"
            )
        options = _options(endpoints, keepalive_s)
        module = grpc.aio if asynchronous else grpc
        if tls is None:
            self.channel: Any = module.insecure_channel(_target(endpoints), options=options)
        else:
            name = tls.server_name or (endpoints[0][0] if len(endpoints) > 1 else None)
            if name is not None:
                options.append(("grpc.ssl_target_name_override", name))
            credentials = grpc.ssl_channel_credentials(**tls.read())
            self.channel = module.secure_channel(_target(endpoints), credentials, options=options)
        self.infer: Any = self.channel.unary_unary(
            MODEL_INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )

    def request(self, encoded: Sequence[bytes], top_k: int, timeout_s: float) -> Any:
        """A ModelInferRequest: images zero-padded to the longest, as `allow_ragged_batch` wants them."""
        longest = max(map(len, encoded))
        request = service_pb2.ModelInferRequest(
            model_name=FRUIT_CLASSIFIER, id=f"{self._prefix}-{next(self._ids)}"
        )
        request.parameters["timeout"].int64_param = int(timeout_s * QUEUE_SHARE * 1e6)
        tensor = request.inputs.add(name=IMAGE, datatype="UINT8")
        tensor.shape.extend((len(encoded), longest))
        output = request.outputs.add(name=PROBABILITIES)
        output.parameters["classification"].int64_param = top_k
        request.raw_input_contents.append(b"".join([one.ljust(longest, b"\0") for one in encoded]))
        return request

    def metadata(self, request: Any) -> list[tuple[str, str]]:
        """What goes with a request: its id for a gateway's log, the API key, and the caller's trace."""
        return [(REQUEST_ID_HEADER, request.id), *self._key, *trace_headers()]

    def predictions(self, response: Any, num_images: int) -> list[Prediction]:
        """The answers in a ModelInferResponse, without names.

        Raises:
            ServerFailure: it is no answer to that many images.
        """
        try:
            entries = _strings(response.raw_output_contents[0])
            top_k, rest = divmod(len(entries), num_images)
            if rest or not top_k:
                raise ValueError(f"{len(entries)} classes for {num_images} images")
            ranked = [_ranked(entry) for entry in entries]
        except (ValueError, IndexError, struct.error) as exc:
            raise ServerFailure(f"{self.url}: an answer that cannot be read: {exc}") from exc
        # The ensemble's version is the classifier's: export renders them together.
        version = response.model_version
        return [
            Prediction("", tuple(ranked[start : start + top_k]), version)
            for start in range(0, len(ranked), top_k)
        ]

    def failure(self, error: grpc.RpcError, request: Any) -> RequestFailed:
        """The error of ours for a call that failed."""
        return translate(
            error.code().name,
            error.details() or "",
            self.url,
            pushback_s=_pushback_s(error.trailing_metadata()),
            request_id=request.id,
        )


def _strings(tensor: bytes) -> list[bytes]:
    """A BYTES tensor: each element behind its length, 4 bytes little-endian."""
    found, position = [], 0
    while position < len(tensor):
        (length,) = _LENGTH.unpack_from(tensor, position)
        position += 4 + length
        found.append(tensor[position - length : position])
    return found


def _ranked(entry: bytes) -> RankedLabel:
    """Triton writes each of `class_count` classes as PROBABILITY:INDEX:LABEL."""
    probability, _, label = entry.decode().split(":", 2)
    return RankedLabel(label, float(probability))


def _pushback_s(trailers: Any) -> float | None:
    """What the server says of the next attempt, seconds; what is no number forbids it."""
    for key, value in trailers or ():
        if key == PUSHBACK_KEY:
            return int(value) / 1e3 if re.fullmatch(r"\d{1,9}", str(value)) else -1.0
    return None


def _options(endpoints: list[tuple[str, int]], keepalive_s: float | None) -> list[tuple[str, Any]]:
    # localhost is one server with two addresses and may listen on one: the other's error would hide its own.
    policy = "pick_first" if [host for host, _ in endpoints] == ["localhost"] else "round_robin"
    options: list[tuple[str, Any]] = [
        # gRPC's own limit is 4 MiB; the server's is its operator's to set.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{policy: {}}]})),
        # A server that comes back is noticed within a second; of its own, not of another client's channel.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
        ("grpc.use_local_subchannel_pool", 1),
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


def _endpoints(url: str) -> list[tuple[str, int]]:
    endpoints = []
    for one in url.split(","):
        match = re.fullmatch(r"\s*(?:\[([^\]]+)\]|([^\s/:\[\]]+)):(\d{1,5})\s*", one)
        if match is None or not 0 < int(match[3]) < 65536:
            raise UsageError(
                f"{one.strip() or 'an empty address'}: no gRPC address; write HOST:PORT[,HOST:PORT...]"
            )
        endpoints.append((match[1] or match[2], int(match[3])))
    return endpoints


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _target(endpoints: list[tuple[str, int]]) -> str:
    """As gRPC wants them: one host it resolves by itself, a list has to be one of addresses."""
    if len(endpoints) == 1:
        host, port = endpoints[0]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    found: set[tuple[str, int]] = set()
    for host, port in endpoints:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            log.warning("%s: not found (%s); going on with the other addresses", host, exc.strerror)
            continue
        found.update((str(info[4][0]), port) for info in infos)
    for family, version in (("ipv4", 4), ("ipv6", 6)):
        addresses = [
            f"[{host}]:{port}" if version == 6 else f"{host}:{port}"
            for host, port in sorted(found)
            if ipaddress.ip_address(host.partition("%")[0]).version == version
        ]
        if addresses:
            return f"{family}:{','.join(addresses)}"
    raise UsageError(f"none of {', '.join(host for host, _ in endpoints)} is found; check the names")

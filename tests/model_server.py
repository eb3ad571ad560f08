"""A real gRPC server that speaks KServe V2 and misbehaves as told: what Triton does not do on demand.

    python -m tests.model_server PORT

runs a well-behaved one that can be killed; its first line is its port.
"""

import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fruitstand_client.wire import QUEUE_SHARE

Behaviour = Callable[["Received", grpc.ServicerContext], None]
"""Looks at a request, and may sleep or abort."""


@dataclass
class Received:
    """One request as the server saw it."""

    id: str
    images: list[bytes]
    """Without their padding."""
    timeout_us: int
    """What the request may wait in the queue; gRPC's own timeout is rounded on the wire."""
    metadata: dict[str, str]

    @property
    def time_left_s(self) -> float:
        """What the client's deadline left when it sent the request."""
        return self.timeout_us / 1e6 / QUEUE_SHARE


@dataclass
class ModelServer:
    """Answers every image with its length as the label."""

    behave: Behaviour
    port: int = 0
    host: str = "127.0.0.1"
    received: list[Received] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        """As the protocol names it."""
        num_images, length = request.inputs[0].shape
        (raw,) = request.raw_input_contents
        rows = [raw[start : start + length].rstrip(b"\0") for start in range(0, len(raw), length)]
        assert len(rows) == num_images
        one = Received(
            request.id,
            rows,
            request.parameters["timeout"].int64_param,
            {str(key): str(value) for key, value in context.invocation_metadata()},
        )
        with self.lock:
            self.received.append(one)
        self.behave(one, context)
        top_k = request.outputs[0].parameters["classification"].int64_param
        entries = [
            f"{1 / (rank + 1):.6f}:{rank}:{len(row)}".encode() for row in rows for rank in range(top_k)
        ]
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version="7", id=request.id
        )
        output = response.outputs.add(name="PROBABILITIES", datatype="BYTES")
        output.shape.extend((num_images, top_k))
        response.raw_output_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in entries))
        return response


@contextmanager
def model_server(
    behave: Behaviour = lambda received, context: None,
    *,
    credentials: grpc.ServerCredentials | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    options: list[tuple[str, Any]] | None = None,
) -> Iterator[ModelServer]:
    """A running server.

    Args:
        behave: called with each request before it is answered.
        credentials: for TLS.
        port: 0 takes a free one.
        host: as it is called in `url`; it listens on loopback.
        options: of the gRPC server; its own limit on messages is lifted as Triton's is.
    """
    service = ModelServer(behave, host=host)
    limits = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    server = grpc.server(ThreadPoolExecutor(16), options=options or limits)

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        ModelInfer = staticmethod(service.ModelInfer)

    serving = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")  # status: SERVING
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": serving}),)
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    address = f"127.0.0.1:{port}"
    service.port = (
        server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    )
    server.start()
    try:
        yield service
    finally:
        server.stop(None).wait(10)


class KillableServer:
    """A well-behaved server in a process of its own; a server that stops by itself ends calls otherwise."""

    def __init__(self, port: int = 0) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "tests.model_server", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    @property
    def url(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.communicate(timeout=10)


if __name__ == "__main__":
    with model_server(port=int(sys.argv[1])) as running:
        print(running.port, flush=True)
        threading.Event().wait()

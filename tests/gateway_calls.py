"""Calls to a gateway, of any method, and what it counted."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from fruitstand.network.ports import claim_ports
from fruitstand.network.tls import Tls
from fruitstand_client.wire import Wire
from serving.gateway.envoy import Gateway
from serving.triton.embedded import EmbeddedServer
from tests.model_server import KillableServer, ModelServer

DEADLINE_S = 10.0
INFER = "/inference.GRPCInferenceService/ModelInfer"


def status(
    url: str,
    path: str = INFER,
    *,
    body: bytes = b"",
    metadata: list[tuple[str, str]] | None = None,
    tls: Tls | None = None,
    compression: grpc.Compression | None = None,
) -> tuple[str, str]:
    """What one call of any method is answered with: the status and its words."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    channel = (
        grpc.secure_channel(url, grpc.ssl_channel_credentials(**tls.read()), options)
        if tls
        else grpc.insecure_channel(url, options)
    )
    with channel:
        call = channel.unary_unary(path)
        try:
            call(body, timeout=DEADLINE_S, metadata=metadata, compression=compression)
        except grpc.RpcError as exc:
            return exc.code().name, exc.details() or ""
    return "OK", ""


def inference(length: int = 10) -> bytes:
    """A ModelInfer of one image, as bytes."""
    wire = Wire("127.0.0.1:1", tls=None, api_key=None, keepalive_s=None, asynchronous=False)
    message: bytes = wire.request([b"x" * length], 1, DEADLINE_S).SerializeToString()
    wire.channel.close()
    return message


def counter(gateway: Gateway, name: str) -> int:
    """One of Envoy's."""
    return int(gateway.statistic(name))


def wait_for(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Until it holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def opened(
    servers: Sequence[KillableServer | ModelServer | EmbeddedServer], access: Path | None, log_path: Path
) -> Gateway:
    """A gateway that runs."""
    port, http_port, metrics_port = claim_ports({"gateway": 0, "http": 0, "metrics": 0})
    gateway = Gateway(
        listen="127.0.0.1",
        port=port,
        http_port=http_port,
        metrics_port=metrics_port,
        access_directory=access,
        log_path=log_path,
    )
    try:
        gateway.start({int(server.url.rpartition(":")[2]): True for server in servers})
    except BaseException:
        gateway.stop()
        raise
    return gateway

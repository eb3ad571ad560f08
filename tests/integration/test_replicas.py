"""`fruitstand serve --replicas 2 --gateway`: Triton behind Envoy, as a user starts it."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fruitstand.sample_images import encode, pattern
from fruitstand_client import Client
from tests.gateway_calls import status, wait_for


@pytest.fixture(scope="module")
def stack(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`fruitstand serve --replicas 2 --gateway` as a user starts it, and its line on stdout."""
    log_path = tmp_path_factory.mktemp("stack") / "triton.log"
    command = [
        sys.executable, "-m", "fruitstand", "serve", "--gateway", "--replicas", "2", "--repository",
        str(repository), "--grpc-port", "0", "--metrics-port", "0", "--log", str(log_path),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    yield process, ready
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_triton_answers_behind_the_gateway_and_a_killed_one_comes_back(
    stack: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    """Calls go on, and the supervisor has two again."""
    _, ready = stack
    image = encode(pattern(100, 100))
    with Client(ready["grpc"], deadline_s=20) as client:
        assert client.classify_batch([image])[0].label
        psutil.Process(ready["replicas"][0]["pid"]).kill()
        for _ in range(20):
            assert client.classify_batch([image])[0].label
    url = ready["replicas"][0]["grpc"]
    wait_for(lambda: status(url, "/grpc.health.v1.Health/Check")[0] == "OK", 90)


def test_the_server_itself_refuses_control_without_its_key(
    stack: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    """The second layer, were the gateway not there: over gRPC and over HTTP."""
    _, ready = stack
    for method in (
        "RepositoryIndex", "RepositoryModelUnload", "ModelConfig", "ModelStatistics", "TraceSetting",
        "SystemSharedMemoryStatus", "CudaSharedMemoryStatus", "LogSettings",
    ):  # fmt: skip
        got, words = status(ready["replicas"][1]["grpc"], f"/inference.GRPCInferenceService/{method}")
        assert got == "UNAVAILABLE", method
        assert "restricted" in words, method


def test_sigterm_leaves_nothing_behind(stack: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    """No process, port, shared memory or folder."""
    process, ready = stack
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    prefix = f"fruitstand-serve-{process.pid}-"
    assert not [*Path("/dev/shm").glob(f"{prefix}*"), *Path("/tmp").glob(f"{prefix}*")]
    for url in (ready["grpc"], ready["admin"].removeprefix("http://"), ready["replicas"][0]["grpc"]):
        host, port = url.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 1)

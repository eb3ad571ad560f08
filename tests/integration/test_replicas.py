"""`fruitstand serve --replicas 2 --gateway`: Triton behind Envoy, as a user starts it."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from export.publish.promote import promote
from fruitstand.errors import ServerError
from fruitstand.images.synthetic import encode, pattern
from fruitstand_client import Client, ImageRejected
from tests.gateway_calls import status, wait_for


@pytest.fixture(scope="module")
def versions(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of our own with two versions."""
    return shutil.copytree(two_versions, tmp_path_factory.mktemp("versions") / "model_repository")


@pytest.fixture(scope="module")
def stack(
    versions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`fruitstand serve --replicas 2 --gateway` as a user starts it, and its line on stdout."""
    log_path = tmp_path_factory.mktemp("stack") / "triton.log"
    command = [
        sys.executable, "-m", "fruitstand", "serve", "--gateway", "--replicas", "2", "--repository",
        str(versions), "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--log", str(log_path),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = {**json.loads(process.stdout.readline()), "log": str(log_path.parent)}
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


def test_a_promotion_reaches_every_server_and_outlives_a_restart(
    stack: tuple[subprocess.Popen[str], dict[str, Any]], versions: Path
) -> None:
    """Through the file that the ready line names; the gateway itself refuses, and says how it is done."""
    _, ready = stack
    image = encode(pattern(100, 100))
    with pytest.raises(ServerError, match="--control"):
        promote(versions, 2, url=ready["grpc"])
    assert promote(versions, 2, control=Path(ready["control"])).version == 2
    for one in ready["replicas"]:
        with Client(one["grpc"]) as client:
            assert client.classify_batch([image])[0].model_version == "2"
    psutil.Process(ready["replicas"][1]["pid"]).kill()
    url = ready["replicas"][1]["grpc"]
    wait_for(lambda: status(url, "/grpc.health.v1.Health/Check")[0] == "OK", 90)
    with Client(url) as client:
        assert client.classify_batch([image])[0].model_version == "2"


def test_nobody_else_reads_the_file_of_model_control(
    stack: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    """Its folder is open to its owner alone."""
    assert Path(stack[1]["control"]).parent.stat().st_mode & 0o077 == 0


def test_a_call_is_found_in_the_log_by_its_id(
    stack: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    """The client's request id and the version that answered; the server too names a refused image's id."""
    _, ready = stack
    folder = Path(ready["log"])
    with Client(ready["grpc"]) as client:
        client.classify_batch([encode(pattern(100, 100))])
        with pytest.raises(ImageRejected) as refused:
            client.classify_batch([b"no image"])
    request_id = refused.value.request_id

    def logged() -> dict[str, dict[str, Any]]:
        lines = (folder / "triton.log.gateway").read_text().splitlines()
        calls = [json.loads(line) for line in lines if line.startswith("{")]
        return {call["request_id"]: call for call in calls}

    answered = request_id.rpartition("-")[0] + "-1"
    wait_for(lambda: {request_id, answered} <= set(logged()))
    assert logged()[answered]["model_version"] == "2"
    assert logged()[request_id]["grpc_status"] == "InvalidArgument"
    wait_for(
        lambda: any(f"request '{request_id}'" in path.read_text() for path in folder.glob("triton.log*"))
    )


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
    metrics = ready["metrics"].removeprefix("http://").partition("/")[0]
    for url in (ready["grpc"], metrics, ready["replicas"][0]["grpc"]):
        host, port = url.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 1)

"""`fruitstand serve` as a process: what it says, what it leaves behind, and what it refuses to serve."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from export.publish.promote import promote
from fruitstand.errors import ArtefactError, ServerError, UsageError
from fruitstand.images.synthetic import encode, pattern
from fruitstand.network.connections import fetch_page
from fruitstand_client import Client
from serving.triton.embedded import PREFIX, SHARED_MEMORY, EmbeddedServer
from tests.backends import on_host
from tests.http_calls import ask
from tests.recording_proxy import PROXY_VARIABLES, recording_proxy


def test_serve_announces_itself_and_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    """SIGTERM ends it with status 0: no process, no shared-memory region, no temporary folder."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", repository]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
        contextlib.ExitStack() as failing,
    ):
        failing.callback(process.terminate)
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] is True
        children = psutil.Process(process.pid).children(recursive=True)
        # tritonserver, and a stub for each of the two backends where those are Python's
        assert len(children) >= (1 if on_host() else 3)
        regions = f"{PREFIX}{process.pid}-*"  # other servers of this machine have theirs
        assert on_host() or [*SHARED_MEMORY.glob(regions)]
        with Client(ready["grpc"]) as client:
            (prediction,) = client.classify([encode(pattern(100, 100))])
            assert prediction.error is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert [*SHARED_MEMORY.glob(regions)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_serve_and_promote_work_beside_a_proxy_that_never_hears_of_them(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The readiness probe, a promotion and its rollback, and a client with an API key."""
    repository = shutil.copytree(two_versions, tmp_path / "model_repository")
    with recording_proxy() as proxy:
        for name in PROXY_VARIABLES:
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        with EmbeddedServer(repository, log_path=tmp_path / "log") as running:
            assert promote(repository, 2, url=running.url).version == 2
            with Client(running.url, api_key="a secret") as client:
                (prediction,) = client.classify([encode(pattern(100, 100))])
            assert prediction.model_version == "2"
            fetch_page(running.metrics_url, timeout_s=20)
    assert proxy.received == b""


def test_a_temporary_folder_that_nothing_starts_from_is_named(repository: Path, tmp_path: Path) -> None:
    """Triton itself says "failed to map segment from shared object"."""
    mount = f"mount -t tmpfs -o noexec,size=16m none {tmp_path}"
    private = ["unshare", "--mount", "sh", "-c", f'{mount} || exit 77; exec "$@"', "sh", sys.executable]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def fruitstand(*words: object) -> "subprocess.CompletedProcess[str]":
        command = [*private, "-m", "fruitstand", *map(str, words)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip("a mount of our own needs root and CAP_SYS_ADMIN")
        return done

    ports = [word for kind in ("grpc", "http", "metrics") for word in (f"--{kind}-port", 0)]
    served = fruitstand("serve", "--repository", repository, *ports)
    assert served.returncode == 2
    assert f"{tmp_path}: is mounted noexec" in served.stderr
    assert "set TMPDIR" in served.stderr
    (found,) = [
        one for one in json.loads(fruitstand("doctor", "--json").stdout)["findings"]
        if one["name"] == "temporary folder"
    ]  # fmt: skip
    assert found["verdict"] == "fail"


def test_a_server_that_was_killed_leaves_no_orphans(repository: Path, tmp_path: Path) -> None:
    """Kill -9 of `fruitstand serve` ends tritonserver as well."""
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", repository]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--log", tmp_path / "log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_tritonserver_that_was_killed_is_started_again(repository: Path, tmp_path: Path) -> None:
    """The same addresses answer again, over gRPC and over HTTP, and SIGTERM still ends all of it."""
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", repository]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--log", tmp_path / "log"]
    image = encode(pattern(100, 100))
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as failing,
    ):
        failing.callback(process.terminate)
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        children = psutil.Process(process.pid).children(recursive=True)
        (server,) = (child for child in children if child.name() == "tritonserver")
        server.kill()
        server.wait(20)
        deadline = time.monotonic() + 60
        while (answer := ask(f"{ready['http']}/classify", image)).status != 200:
            assert time.monotonic() < deadline, answer
            time.sleep(0.1)
        with Client(ready["grpc"]) as client:
            (prediction,) = client.classify([image])
        assert prediction.error is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_taken_port_is_named(repository: Path) -> None:
    """With the flag that changes it; no server is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} is in use.*--http-port"):
            EmbeddedServer(repository, http_port=port)


def test_a_folder_that_is_no_repository_is_refused(repository: Path, tmp_path: Path) -> None:
    """As is one in which nothing is published."""
    import shutil

    with pytest.raises(UsageError, match="no model repository"):
        EmbeddedServer(tmp_path)
    copy = shutil.copytree(repository, tmp_path / "copy")
    shutil.rmtree(copy / "fruit_resnet" / "1")
    with pytest.raises(UsageError, match="no version of fruit_resnet"):
        EmbeddedServer(copy)


def test_a_model_that_cannot_be_loaded_is_named(repository: Path, tmp_path: Path) -> None:
    """The start looks at the files again, and gives the server's own reason where it has one."""
    import shutil

    copy = shutil.copytree(repository, tmp_path / "copy")
    model, pipeline = copy / "fruit_resnet" / "1" / "model.int8.onnx", copy / "image_decode" / "1" / "dali.py"
    server, content = EmbeddedServer(copy, log_path=tmp_path / "log"), model.read_bytes()
    model.write_bytes(b"torn")
    with pytest.raises(ArtefactError, match=r"model\.int8\.onnx: altered"):
        server.start()
    assert not server.is_alive()
    model.write_bytes(content)
    pipeline.write_text("no pipeline\n")
    with pytest.raises(ServerError, match=r"its log says: .*dali\.py"):
        server.start()
    assert not server.is_alive()

"""`fruitstand attest`: green on what keeps its promises, red in the right line on what does not.

Speed is judged against one image a second where it is not the claim: a busy machine is no fault.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from export.publish.promote import promote
from fruitstand.artefacts import read_json, write_json
from fruitstand.contract import FRUIT_RESNET, IMAGE_DECODE
from fruitstand.errors import UsageError
from fruitstand.manifest import PreparedData
from fruitstand.network.ports import claim_ports
from fruitstand.repository.versions import MANIFEST_NAME
from serving.attest.attest import NAMES, attest
from serving.attest.report import Report, Status
from serving.gateway.envoy import Gateway
from serving.triton.embedded import EmbeddedServer
from tests import faulty_server as faults
from tests.faulty_server import faulty_server

ANY_SPEED = 1.0
CONTROL_METHODS = (
    "RepositoryModelLoad", "RepositoryIndex", "SystemSharedMemoryStatus", "TraceSetting", "LogSettings",
    "ModelStatistics",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the smallest ResNet for 32 pixels, fp32 only."""
    from export.publish.export import export
    from training.fit.config import TrainConfig
    from training.fit.train import train

    folder = tmp_path_factory.mktemp("tiny")
    config = TrainConfig(model_name="resnet10t", epochs=3, batch_size=8, lr=0.02, input_size=32)
    train(config, data_directory=prepared.directory, out=folder / "run")
    export(folder / "run", repository=folder / "repository", data_directory=None, variants=("fp32",))
    return folder / "repository"


@pytest.fixture(scope="module")
def promoted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same repository after version 2, a copy of 1, was promoted in it."""
    copy = shutil.copytree(tiny, tmp_path_factory.mktemp("promoted") / "repository")
    second = shutil.copytree(copy / FRUIT_RESNET / "1", copy / FRUIT_RESNET / "2")
    write_json(second / MANIFEST_NAME, {**read_json(second / MANIFEST_NAME), "version": 2})
    promote(copy, 2)
    return copy


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The embedded server as `fruitstand serve` starts it."""
    with EmbeddedServer(tiny, log_path=tmp_path_factory.mktemp("plain") / "triton.log") as server:
        yield server


def statuses(report: Report | dict[str, Any]) -> dict[str, str]:
    """By name; the whole report stands in the message of a test that fails."""
    if isinstance(report, Report):
        print("\n".join(report.lines()))
        return {check.name: str(check.status) for check in report.checks}
    print(json.dumps(report, indent=1))
    return {check["name"]: check["status"] for check in report["checks"]}


def verb(url: str, *words: object) -> "subprocess.CompletedProcess[str]":
    """`fruitstand attest`, as a user types it."""
    command = [sys.executable, "-m", "fruitstand", "attest", url, "--quick", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def test_the_embedded_server_keeps_every_promise(plain: EmbeddedServer, tiny: Path, tmp_path: Path) -> None:
    """On loopback its open control and its age are warnings; the report lies whole in the folder."""
    done = verb(plain.url, "--repository", tiny, "--min-throughput", ANY_SPEED, "--json", "--out", tmp_path)
    report = json.loads(done.stdout)
    seen = statuses(report)
    assert {name: status for name, status in seen.items() if status != Status.PASSED} == {
        "control": Status.WARNING,
        "runtime": Status.WARNING,
    }
    assert tuple(seen) == NAMES
    assert done.returncode == 0
    assert json.loads((tmp_path / "attest.json").read_text()) == report
    assert all(name in (tmp_path / "attest.md").read_text() for name in NAMES)
    assert report["server"]["devices"][FRUIT_RESNET][:2] == ["backend onnxruntime", "1 x KIND_CPU"]
    assert [one["in_flight"] for one in report["speed"]] == [1, 8, 64]


def test_a_gateway_is_green_and_hides_the_statistics(tiny: Path, tmp_path: Path) -> None:
    """From outside control is closed, so that batches cannot be seen."""
    command = [
        sys.executable, "-m", "fruitstand", "serve", "--gateway", "--repository", str(tiny), "--grpc-port",
        "0", "--http-port", "0", "--metrics-port", "0", "--log", str(tmp_path / "triton.log"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            url = json.loads(serving.stdout.readline())["grpc"]
            # What the embedded server alone was asked above, and a gateway does not change.
            report = attest(url, repository=tiny, quick=True, skip=("input_kinds", "isolation", "speed"))
        finally:
            serving.terminate()
    assert report.server["gateway"]
    assert {name: status for name, status in statuses(report).items() if status != Status.PASSED} == {
        "batching": Status.NOT_SEEN,
        "runtime": Status.WARNING,
    }


def test_faults_of_the_repository_are_told_apart(tiny: Path, tmp_path: Path) -> None:
    """Wrong labels, other preprocessing, no ragged flag and no queue limit, at once in one server."""
    planted = (
        faults.wrong_labels, faults.other_preprocessing, faults.no_ragged_flag, faults.no_queue_limit,
    )  # fmt: skip
    with faulty_server(tiny, tmp_path, files=planted) as server:
        report = attest(
            server.url, repository=tiny, quick=True, skip=("input_kinds", "isolation", "speed", "deadline")
        )
    found = statuses(report)
    assert {"labels", "decode", "batching", "queue_limit"} <= failed(found)
    assert found["contract"] == found["version"] == found["model"] == found["alive"] == Status.PASSED


@pytest.mark.nightly
def test_another_models_weights_and_a_batch_that_fails_as_a_whole(tiny: Path, tmp_path: Path) -> None:
    """Weights show in golden images and in the model step; the lack of isolation in its own line."""
    with faulty_server(
        tiny, tmp_path, files=(faults.other_weights,), backends=(faults.no_isolation,)
    ) as server:
        report = attest(
            server.url, repository=tiny, quick=True, skip=("speed", "deadline", "queue_limit", "batching")
        )
    found = statuses(report)
    assert failed(found) == {"golden", "model", "parity", "isolation"}
    assert found["decode"] == found["input_kinds"] == Status.PASSED


@pytest.mark.nightly
def test_an_old_version_and_a_slow_step(tiny: Path, promoted: Path, tmp_path: Path) -> None:
    """The server was not told of a promotion; every batch takes most of a second."""
    with faulty_server(tiny, tmp_path, backends=(faults.slow,)) as server:
        report = attest(
            server.url, repository=promoted, quick=True,
            skip=("contract", "labels", "golden", "batching", "input_kinds", "isolation", "deadline",
                  "queue_limit", "error_texts"),
        )  # fmt: skip
    assert failed(statuses(report)) == {"version", "speed"}


def test_control_that_is_open_behind_a_gateway(
    plain: EmbeddedServer, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without its key, and a gateway that lets every method through."""
    monkeypatch.setattr("serving.gateway.routes.METHODS", ("ModelInfer", "ServerReady", *CONTROL_METHODS))
    port, metrics_port = claim_ports({"gateway": 0, "metrics": 0})
    gateway = Gateway(
        listen="127.0.0.1", port=port, metrics_port=metrics_port, access_directory=None,
        log_path=tmp_path / "envoy.log",
    )  # fmt: skip
    try:
        gateway.start({plain.grpc_port: True})
        others = tuple(name for name in NAMES if name not in ("answers", "control"))
        report = attest(gateway.url, repository=tiny, quick=True, skip=others)
    finally:
        gateway.stop()
    assert statuses(report) == {"answers": Status.PASSED, "control": Status.FAILED}


def test_without_a_repository_it_says_what_it_cannot_see(plain: EmbeddedServer) -> None:
    """What needs no repository is still judged."""
    report = attest(plain.url, quick=True, skip=("input_kinds", "isolation", "queue_limit", "deadline"))
    found = statuses(report)
    unseen = {name for name, status in found.items() if status == Status.NOT_SEEN}
    assert unseen == {"labels", "version", "golden", "decode", "model", "parity", "known", "speed"}
    assert found["contract"] == found["batching"] == Status.PASSED


def test_an_altered_repository_is_no_reference(plain: EmbeddedServer, tiny: Path, tmp_path: Path) -> None:
    """Its version is red, and nothing is compared with it."""
    altered = shutil.copytree(tiny, tmp_path / "repository")
    with (altered / FRUIT_RESNET / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    others = ("input_kinds", "isolation", "queue_limit", "deadline", "speed", "batching")
    found = statuses(attest(plain.url, repository=altered, quick=True, skip=others))
    assert failed(found) == {"version"}
    assert found["golden"] == found["model"] == Status.NOT_SEEN


def test_what_cannot_be_carried_out_is_a_usage_error(
    plain: EmbeddedServer, tiny: Path, tmp_path: Path
) -> None:
    """Before a call is made."""
    with pytest.raises(UsageError, match="no check 'nonsense'"):
        attest(plain.url, skip=("nonsense",))
    with pytest.raises(UsageError, match="no model repository"):
        attest(plain.url, repository=tmp_path)
    with pytest.raises(UsageError, match="HOST:PORT"):
        attest("http://localhost:8001")
    with pytest.raises(UsageError, match="only with TLS"):
        attest("192.0.2.1:8001", api_key="secret")


@pytest.mark.nightly
def test_a_dead_step_is_named(tiny: Path, tmp_path: Path) -> None:
    """The process of the decoder is killed; on the stubs each step has one of its own."""
    with faulty_server(tiny, tmp_path) as server:
        for child in psutil.Process(server.pid).children(recursive=True):
            if any(IMAGE_DECODE in word for word in child.cmdline()):
                child.kill()
        done = verb(server.url, "--repository", tiny)
    assert done.returncode == 1
    first, *others = done.stdout.splitlines()
    assert first.startswith("failed    answers")
    assert f"{IMAGE_DECODE}: INTERNAL" in first
    assert sum(line.startswith("failed") for line in others) == 0


def failed(found: dict[str, str]) -> set[str]:
    """The red lines."""
    return {name for name, status in found.items() if status == Status.FAILED}

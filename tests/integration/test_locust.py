import json
import subprocess
import sys
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.errors import ServerError, UsageError
from fruitstand.manifest import PreparedData
from fruitstand.network.ports import claim_ports
from loadtests.perf_analyzer import install_perf_analyzer
from loadtests.results.result import read_result
from loadtests.server_statistics import ServedModel, StatisticsLog
from serving.gateway.envoy import Gateway
from serving.triton.embedded import EmbeddedServer
from tests.command import fruitstand

NUM_USERS = 8
LOCUSTFILE = Path(__file__).parents[2] / "loadtests" / "locustfile.py"


def test_locust_counts_what_the_server_counts(server: EmbeddedServer, prepared: PreparedData) -> None:
    """Eight users under gevent: no failure, and not one call that only one side knows of."""
    client = triton.InferenceServerClient(server.url)

    def served() -> int:
        return client.get_inference_statistics(FRUIT_CLASSIFIER).model_stats[0].inference_stats.success.count

    before = served()
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--host", server.url, "--headless"]
    command += [
        "--users",
        str(NUM_USERS),
        "--spawn-rate",
        str(NUM_USERS),
        "--run-time",
        "4s",
        "--stop-timeout",
        "10",
    ]
    command += [
        "--images",
        prepared.directory / "images" / "Test",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["name"] == "classify, batch 1"
    assert row["num_failures"] == 0
    assert row["num_requests"] == served() - before >= NUM_USERS
    client.close()


@pytest.mark.nightly
def test_two_workers_account_for_every_call(
    server: EmbeddedServer, prepared: PreparedData, tmp_path: Path
) -> None:
    """In an open loop as many calls as the server counts, and an objective missed is exit 1."""
    slo = tmp_path / "slo.toml"
    slo.write_text("[spike]\nimages_per_s = 1e9\n")
    out = tmp_path / "out"
    done = fruitstand(
        "loadtest",
        *("--url", server.url, "--images", prepared.directory / "images" / "Test", "--out", out),
        *("--profile", "spike", "--peak", "20", "--stage-s", "3", "--workers", "2"),
        *("--request-batches", "1,4", "--slo", slo),
    )
    assert done.returncode == 1, done.stderr
    assert "MISSED: images_per_s" in done.stdout
    result = read_result(out)
    assert len(result.points) == 3
    assert result.accounted["num_calls"] == result.accounted["num_served"] > 20
    assert result.accounted["num_unanswered"] == result.accounted["num_rejected"] == 0
    assert {path.name for path in out.glob("*.png")} == {"over_time.png", "against_load.png", "steps.png"}
    assert (out / "report.html").is_file()


@pytest.mark.nightly
def test_behind_a_gateway_the_result_is_without_the_servers_side(
    server: EmbeddedServer, prepared: PreparedData, tmp_path: Path
) -> None:
    """The gateway shows nobody the server's statistics; the load runs all the same."""
    port, metrics_port = claim_ports({"gateway": 0, "metrics": 0})
    gateway = Gateway(
        listen="127.0.0.1",
        port=port,
        metrics_port=metrics_port,
        access_directory=None,
        log_path=tmp_path / "envoy.log",
    )
    try:
        gateway.start({server.grpc_port: True})
        out = tmp_path / "out"
        images = prepared.directory / "images" / "Test"
        flags = ("--profile", "spike", "--peak", "20", "--stage-s", "3")
        done = fruitstand("loadtest", "--url", gateway.url, "--images", images, "--out", out, *flags)
    finally:
        gateway.stop()
    assert done.returncode == 0, done.stderr
    result = read_result(out)
    assert result.accounted["num_calls"] > 20
    assert result.accounted["num_served"] is None
    assert all(point.steps == [] for point in result.points)
    assert {path.name for path in out.glob("*.png")} == {"over_time.png", "against_load.png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("--url", "127.0.0.1:1"), "no server answers", id="no_server"),
        pytest.param(("--images", "EMPTY"), "no images", id="no_images"),
        pytest.param(("--slo", "EMPTY/slo.toml"), "SLO file", id="no_slo_file"),
        pytest.param(("--profile", "steady"), "--peak", id="no_peak"),
        pytest.param(("--request-batches", "3"), "request-batches", id="batch_size"),
    ],
)
def test_what_cannot_be_run_exits_2(
    arguments: tuple[str, str], words: str, server: EmbeddedServer, prepared: PreparedData, tmp_path: Path
) -> None:
    """With one line, before anything is sent."""
    usual = {"--url": server.url, "--images": str(prepared.directory / "images" / "Test")}
    flags = {**usual, "--out": str(tmp_path / "out"), **dict([arguments])}
    empty = tmp_path / "empty"
    empty.mkdir()
    done = fruitstand(
        "loadtest", *(word.replace("EMPTY", str(empty)) for pair in flags.items() for word in pair)
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_the_classifier_is_named(
    server: EmbeddedServer, prepared: PreparedData, tmp_path: Path
) -> None:
    """By loadtest, profile and diagnose alike."""
    images = str(prepared.directory / "images" / "Test")
    sending = ("--images", images, "--out", str(tmp_path / "out"))
    client = triton.InferenceServerClient(server.url)
    client.unload_model(FRUIT_CLASSIFIER)
    try:
        for verb, flags in (("loadtest", sending), ("profile", sending), ("diagnose", ())):
            done = fruitstand(verb, "--url", server.url, *flags)
            assert done.returncode == 2, (verb, done.stderr)
            assert FRUIT_CLASSIFIER in done.stderr
            assert server.url in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        client.load_model(FRUIT_CLASSIFIER)
        client.close()


def test_a_server_that_goes_away_is_a_failure_and_no_wrong_use(repository: Path, tmp_path: Path) -> None:
    """Exit 1, and the thread that reads the counters ends without a traceback."""
    with (
        EmbeddedServer(repository, log_path=tmp_path / "log") as own,
        ServedModel(own.url) as model,
        pytest.raises(ServerError, match="no server answers"),
        StatisticsLog(model) as readings,
    ):
        own.stop(at_once=True)
        readings._thread.join(60)
    assert ServerError.exit_code == 1


def test_a_perf_analyzer_that_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it needs, and where else there is one."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"cannot be installed.*compose --profile profile"):
        install_perf_analyzer(tmp_path / "build")

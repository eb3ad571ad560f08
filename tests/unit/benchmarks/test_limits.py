import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.in_process import in_process, served_version
from benchmarks.limits import CONCURRENCIES, REQUEST_BATCHES, Senders, summarise
from benchmarks.load import NothingMeasured, Target, closed_loop
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.manifest import PreparedData
from serving.triton.embedded import EmbeddedServer


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is slow for one round is slow for both sides of its ratio."""
    samples = {
        "sequential": [100.0, 50.0, 80.0],
        "overlapped": [90.0, 60.0, 60.0],
        "parallel": [80.0, 40.0, 100.0],
        "served_c64_b1": [90.0, 54.0, 80.0],
        "served_c8_b1": [50.0, 30.0, 50.0],
        "served_c8_b32": [100.0, 60.0, 100.0],
    }
    summary = summarise(samples)
    assert summary["served_over_in_process_c64_b1"] == {"median": 0.9, "min": 0.8, "max": 0.9}
    assert summary["served_over_in_process_b32"]["median"] == 1.0
    assert summary["images_per_s"]["sequential"] == 80.0


@pytest.mark.nightly
def test_the_benchmark_runs_end_to_end(repository: Path, prepared: PreparedData, tmp_path: Path) -> None:
    """Every measurement has a number, and the summary has its keys; what they are is no test's business."""
    out = tmp_path / "limits.json"
    command = [sys.executable, "-m", "benchmarks.limits", "--quick", "--repository", repository]
    command += ["--images", prepared.directory / "images", "--out", out, "--model-name", "tiny"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    samples = result["samples"]["tiny"]
    expected = {f"served_c{c}_b{b}" for c in CONCURRENCIES for b in REQUEST_BATCHES}
    assert set(samples) == expected | {"decode", "infer", "sequential", "overlapped", "parallel"}
    # Half a second is too short for a thousand images under way at once; there 0 is an honest answer.
    many = {f"served_c{c}_b{b}" for c in CONCURRENCIES for b in REQUEST_BATCHES if c * b >= 1000}
    assert all(value > 0 for name in set(samples) - many for value in samples[name])
    assert "served_over_in_process_c64_b1" in result["summary"]["tiny"]
    assert "/" not in result["command"].replace("--", "")


@pytest.mark.nightly
def test_several_processes_send_together(server: EmbeddedServer, test_images: list[Path]) -> None:
    """Also fewer requests in flight than there are processes."""
    files = [path.read_bytes() for path in test_images[:32]]
    with Senders(server.url, files, 2) as load:
        measures = load.measures("served")
        assert all(measures[name](0.5) > 0 for name in ("served_c1_b1", "served_c8_b1", "served_c1_b8"))


def test_a_server_that_is_not_there_is_no_zero() -> None:
    """A load too long for its time is one, a dead server an error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        target = Target(f"127.0.0.1:{probe.getsockname()[1]}", [b"x"])
        with pytest.raises(FruitstandError, match="is the server there") as caught:
            asyncio.run(closed_loop(target, 1, 0.2))
    assert not isinstance(caught.value, NothingMeasured)


def test_an_unknown_configuration_is_named(repository: Path) -> None:
    """Instead of measuring the processor under its name."""
    with pytest.raises(UsageError, match="gpu_trt: allowed cpu, gpu, gpu-trt"):
        in_process(repository, served_version(repository), [], "gpu_trt")
